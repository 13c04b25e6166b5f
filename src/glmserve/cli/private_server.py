"""A server of one's own in the background, for as long as one command runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import httpx

from glmserve.protocol.errors import ModelLoadError


@contextmanager
def private_server(model: str, start_timeout: float, flags: Sequence[str] = (), keyless: bool = False) -> Iterator[str]:
    """Start `glmserve serve MODEL` on a free local port, give its URL once it is ready, and end it.

    Further settings are `flags` and GLMSERVE_* variables; `keyless` leaves out a key among these.
    Raises ModelLoadError with the server's own last words.
    """
    port = _free_port()
    command = [sys.executable, "-m", "glmserve", "serve", model, "--host", "127.0.0.1", "--port", str(port), "--shutdown-timeout", "1"]
    environ = {**os.environ, "GLMSERVE_API_KEY": ""} if keyless else None
    with tempfile.TemporaryFile() as log:
        # a session of its own, so that a Ctrl-C meant for the answer does not reach the server
        process: subprocess.Popen[bytes] | None = None
        try:
            with _interrupt_postponed():
                process = subprocess.Popen(
                    [*command, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
                )
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log, start_timeout)
            yield url
        finally:
            if process is not None:
                _stop(process)


@contextmanager
def _interrupt_postponed() -> Iterator[None]:
    """A Ctrl-C that comes while a process is being started takes effect after that, when there is somebody who can end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None:
        if _is_ready(url):
            return
        if time.monotonic() > deadline:
            raise ModelLoadError(f"the model was not ready within {timeout:.0f} seconds; --start-timeout gives it longer.")
        time.sleep(0.1)
    raise ModelLoadError(_last_words(log))


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "the server could not start:\n" + "\n".join(line.removeprefix("glmserve: ") for line in lines[-12:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
