"""The server that a command starts for itself ends with it, whenever the command is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from glmserve.cli import private_server


def test_an_interrupt_while_the_process_is_being_started_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    popen, started = subprocess.Popen, []

    def start_and_be_interrupted(*_: Any, **__: Any) -> subprocess.Popen[bytes]:
        process = popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.kill(os.getpid(), signal.SIGINT)
        started.append(process)
        return process

    monkeypatch.setattr(private_server.subprocess, "Popen", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), private_server.private_server("model", 5.0):
        pytest.fail("the interrupt was lost")
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
