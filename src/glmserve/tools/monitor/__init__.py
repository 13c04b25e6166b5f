"""Watches servers from outside, over HTTP: a live page, lines for a log, alert rules.  Serves any server with vLLM's metric names."""
