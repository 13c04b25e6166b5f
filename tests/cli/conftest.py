"""A scripted server, and a way to run the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cli.scripted_server import ScriptedServer


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def glmserve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `glmserve ...` as a user does; the settings of whoever runs the tests stay out."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GLMSERVE_")}

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "glmserve", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            env={**environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", **variables},
        )

    return run
