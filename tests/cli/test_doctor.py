"""`glmserve doctor` as it is called: exit status, JSON, the list, and words for what cannot be examined."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmserve.tools.doctor.checklist import ALL
from tests.tools.doctor.faulty_server import FaultyServer

Run = Callable[..., subprocess.CompletedProcess[str]]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "tokenizer"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_help_says_what_it_takes_and_what_the_exit_status_means(glmserve: Run) -> None:
    shown = glmserve("doctor", "--help").stdout
    assert "glmserve doctor /models/chatglm-6b" in shown
    assert "0 healthy, 1 something to mend, 2 it could not be examined" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_the_list_names_every_check(glmserve: Run) -> None:
    assert [line.split()[0] for line in glmserve("doctor", "--list").stdout.splitlines()] == [check.name for check in ALL]


def test_a_healthy_server_is_status_0(glmserve: Run, server: FaultyServer) -> None:
    result = glmserve("doctor", server.url, "--quick", "--checks", "answers,keep_alive")
    assert result.returncode == 0
    assert "with what these checks send" in " ".join(result.stderr.split())
    assert "Healthy: 2 ok" in result.stdout


def test_a_fault_is_status_1_and_json_says_all(glmserve: Run, server: FaultyServer) -> None:
    server.one_at_a_time = True
    result = glmserve("doctor", server.url.removeprefix("http://"), "--checks", "pulses", "--quick", "--json")
    assert result.returncode == 1
    (check,) = json.loads(result.stdout)["checks"]
    assert (check["name"], check["verdict"]) == ("pulses", "fail")
    assert check["evidence"]["ratio"] > 2


def test_a_broken_folder_is_status_1(glmserve: Run, tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "config.json", tmp_path)
    result = glmserve("doctor", str(tmp_path))
    assert result.returncode == 1
    assert "no weights: neither model*.safetensors nor" in result.stdout
    assert "mend:" in result.stdout


@pytest.mark.parametrize("target", ["http://127.0.0.1:9", "/no/such/folder"])
def test_what_cannot_be_examined_is_status_2(glmserve: Run, target: str) -> None:
    result = glmserve("doctor", target)
    assert result.returncode == 2
    assert target in result.stderr
    assert "Traceback" not in result.stderr


def test_the_key_comes_from_the_variable(glmserve: Run, server: FaultyServer) -> None:
    server.key = "k1"
    assert glmserve("doctor", server.url, "--checks", "keep_alive").returncode == 2
    assert glmserve("doctor", server.url, "--checks", "keep_alive", GLMSERVE_API_KEY="k1,k2").returncode == 0


def test_an_unknown_check_is_told_with_the_known_ones(glmserve: Run) -> None:
    result = glmserve("doctor", "--checks", "puls")
    assert result.returncode == 2
    assert "pulses" in result.stderr


def test_checks_that_cannot_be_made_there_are_no_clean_bill(glmserve: Run, server: FaultyServer) -> None:
    for target, check, examined in ((str(FIXTURE), "pulses", "a model folder"), (server.url, "weights", "a running server")):
        result = glmserve("doctor", target, "--checks", check)
        assert result.returncode == 2
        assert f"--checks {check}: nothing of that can be examined on {examined}" in result.stderr
        assert "Healthy" not in result.stdout
