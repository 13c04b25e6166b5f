"""The GPU wing's own loop: it knows token ids, never text."""
