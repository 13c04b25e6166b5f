"""The article's case for real: supervisord runs an old demo, `glmserve deploy` takes its place, and the way back works.

The commands are the ones that are printed for people, but for `sudo`.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("supervisor", reason="supervisor is not installed: it is one of the development dependencies")

CONFIGURATION = """\
[unix_http_server]
file={folder}/control.sock

[supervisord]
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{folder}/control.sock

[program:chatglm]
command={python} api.py
directory={folder}
stdout_logfile={folder}/chatglm.log
redirect_stderr=true
"""
OLD_DEMO = """\
from http.server import BaseHTTPRequestHandler, HTTPServer

class Demo(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the old demo")

def run(host, port):
    HTTPServer((host, port), Demo).serve_forever()

run(host="127.0.0.1", port=%d)
"""


class Supervised:
    """supervisord with an old demo on `port`; what it wrote last is shown where it fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "supervisord.conf"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "api.py").write_text(OLD_DEMO % self.port)
        self.file.write_text(CONFIGURATION.format(folder=folder, python=sys.executable))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GLMSERVE_")}
        self.environ = environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(self.file)],
            env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """As somebody at a terminal does."""
        command = command.replace("sudo ", "")
        result = subprocess.run(["bash", "-euc", command], env=self.environ, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout

    def answers(self, path: str, text: str) -> None:
        """Wait until it does."""
        deadline = time.monotonic() + 100
        said = ""
        while text not in said:
            assert time.monotonic() < deadline, f"{said}\n{(self.folder / 'chatglm.log').read_text()}"
            try:
                said = httpx.get(f"http://127.0.0.1:{self.port}{path}").text
            except httpx.HTTPError:
                time.sleep(0.1)


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    folder = Path(tempfile.mkdtemp(prefix="glmserve-"))  # a socket's path has room for 107 letters, fewer than pytest's folder may take
    supervised = Supervised(folder)
    yield supervised
    supervised.process.terminate()
    supervised.process.wait(60)
    shutil.rmtree(folder)


def steps(told: str) -> dict[str, list[str]]:
    """Commands by the first word of the sentence above them."""
    found: dict[str, list[str]] = {}
    commands: list[str] = []
    for line in told.splitlines():
        if line.startswith("    "):
            commands.append(line.strip())
        elif line:
            commands = found[line.split()[0]] = []
    return found


@pytest.mark.slow
def test_an_old_demo_is_switched_and_switched_back(
    supervised: Supervised, glmserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    supervised.answers("/", "the old demo")
    before = supervised.file.read_text()
    written = supervised.folder / "new.conf"
    result = glmserve(
        "deploy", "supervisor", "demo", "--replace", f"{supervised.file}:chatglm", "--output", str(written),
        "--device", "cpu", "--num-threads", "1", "--user", getpass.getuser(),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"at port {supervised.port}" in result.stderr and supervised.file.read_text() == before
    told = steps(result.stderr)

    for command in told["Switch:"]:
        supervised.run(command)
    supervised.answers("/ready", '"ready"')
    assert supervised.run(f"supervisorctl -c {supervised.file} status chatglm").split()[1] in ("STARTING", "RUNNING")

    body = {"messages": [{"role": "user", "content": "以春日为题写一首七言绝句"}], "max_tokens": 150, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{supervised.port}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        stop = subprocess.Popen(["bash", "-c", f"supervisorctl -c {supervised.file} stop chatglm"], env=supervised.environ)
        events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length" and events[-1] == "[DONE]"
    assert stop.wait(60) == 0

    for command in told["Go"]:
        supervised.run(command)
    supervised.answers("/", "the old demo")
    assert supervised.file.read_text() == before
