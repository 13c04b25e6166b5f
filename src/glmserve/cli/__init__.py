"""The command line: one file a command.  Nothing here imports torch, so `--help` answers at once."""
