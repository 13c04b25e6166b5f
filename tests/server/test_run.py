"""The whole server as a process: what it says at its start, how a signal ends it, and what it needs to start at all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from glmserve.config import EngineConfig, ServerConfig
from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import AddressError, EngineUnavailableError, ModelLoadError, SettingsError
from glmserve.server.run import allow_many_clients, bind, serve
from tests.server.serving import FIXTURE, chat_body, eventually

PROGRAM = """
import sys
from glmserve.config import EngineConfig, ServerConfig
from glmserve.server.run import serve
serve(EngineConfig.model_validate_json(sys.argv[1]), ServerConfig.model_validate_json(sys.argv[2]),
      engine_module="glmserve.engine.fake", engine_args=sys.argv[3:])
"""


class ServerProcess:
    """`serve` in a process of its own, on a free port."""

    def __init__(self, log: Path, **server: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        config = ServerConfig.model_validate({"host": "127.0.0.1", "port": self.port} | server)
        arguments = [EngineConfig(model=str(FIXTURE)).model_dump_json(), config.model_dump_json()]
        arguments += FakeOptions(alphabet=(20, 21, 22), step_seconds=0.02).as_arguments()
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=stderr)
        self.url = f"http://127.0.0.1:{self.port}"
        eventually(self.ready)

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.ConnectError:
            return False


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(**server: object) -> ServerProcess:
        started.append(ServerProcess(tmp_path / "stderr", **server))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def test_a_signal_lets_running_answers_finish(start_process: Callable[..., ServerProcess]) -> None:
    server = start_process(shutdown_timeout=20)
    start = eventually(lambda: "serving" in server.log.read_text() and server.log.read_text())
    assert "fake engine: no weights" in start and "1048576 K/V tokens" in start and f"{server.url}/v1" in start
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat_body(stream=True, max_tokens=60) | {"model": None}) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        assert "shutting down" in httpx.get(f"{server.url}/ready").json()["reason"]
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat_body() | {"model": None})
        assert refused.status_code == 503 and "retry-after" in refused.headers
        events = [line for line in lines if line]
    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert events[-1] == "data: [DONE]"
    assert server.process.wait(15) == 0


def test_a_body_that_does_not_come_does_not_hold_the_end_up(start_process: Callable[..., ServerProcess]) -> None:
    server = start_process(shutdown_timeout=60)
    eventually(lambda: "serving" in server.log.read_text())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        eventually(lambda: re.search(r"num_requests_accepted{.*} 1.0", httpx.get(f"{server.url}/metrics").text))
        server.process.send_signal(signal.SIGTERM)
        assert b" 503 " in half.recv(4096)
    assert server.process.wait(15) == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("how", ["time", "second signal"])
def test_what_is_not_done_in_time_is_cut_off(start_process: Callable[..., ServerProcess], how: str) -> None:
    server = start_process(shutdown_timeout=0.2 if how == "time" else 600)
    with httpx.stream("POST", f"{server.url}/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 500}) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        if how == "second signal":
            eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
            server.process.send_signal(signal.SIGTERM)
        events = [line for line in lines if line]
    assert "shutting down" in json.loads(events[-2][6:])["error"]["message"]
    assert server.process.wait(15) == 0


def test_the_engine_ends_with_a_killed_server(start_process: Callable[..., ServerProcess]) -> None:
    server = start_process()
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert children
    server.process.kill()
    server.process.wait()

    def gone(pid: str) -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().split()[2] == "Z"

    eventually(lambda: all(gone(pid) for pid in children))


def test_a_taken_port_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=rf"port {port} is taken .*--port") as caught:
            serve(EngineConfig(model=str(FIXTURE)), ServerConfig(host="127.0.0.1", port=port))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("soft", "hard", "becomes"), [(64, 512, 512), (64, -1, 65536), (-1, -1, -1), (100_000, 200_000, 100_000)])
def test_as_many_clients_as_the_system_lets_it(soft: int, hard: int, becomes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(soft, hard)]  # -1 is no limit
    monkeypatch.setattr("resource.getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda kind, pair: limits.append(pair))
    allow_many_clients()
    assert limits[-1] == (becomes, hard)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_a_forbidden_port() -> None:
    with pytest.raises(SettingsError, match="above 1023"):
        bind("127.0.0.1", 80)


def test_an_address_that_is_none() -> None:
    with pytest.raises(SettingsError, match="--host"):
        bind("no such host.invalid", 0)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        serve(EngineConfig(model=str(tmp_path)), ServerConfig(host="127.0.0.1", port=0))


def test_an_engine_that_cannot_start_is_the_error_of_serve() -> None:
    with pytest.raises(EngineUnavailableError, match="no GPU here"):
        serve(
            EngineConfig(model=str(FIXTURE)),
            ServerConfig(host="127.0.0.1", port=0),
            engine_module="glmserve.engine.fake",
            engine_args=FakeOptions(load_error="no GPU here").as_arguments(),
        )
