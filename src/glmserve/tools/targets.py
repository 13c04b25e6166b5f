"""What people name on the command line: a server, or a model folder."""

from __future__ import annotations

from pathlib import Path


def as_url(target: str) -> str | None:
    """A URL, or HOST:PORT as people type it; None for the name of a folder."""
    if "://" in target:
        return target
    host, _, port = target.rpartition(":")
    return f"http://{target}" if host and port.isdigit() and not Path(target).exists() else None
