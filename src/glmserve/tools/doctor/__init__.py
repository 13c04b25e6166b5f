"""What is wrong with a running service, a model folder or this machine, and how to mend it.  Meets a service over HTTP alone."""
