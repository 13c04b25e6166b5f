"""`glmserve bench ladder` as a command: real servers, and a Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FIXTURE = Path(__file__).parents[1] / "fixtures/models/chatglm-tiny"
LOAD = ["--skip-tokenizer-init", "--token-ids", "4:80", "--prompt-suffix-ids", "91,94", "--concurrency", "2", "--num-threads", "1"]


@pytest.mark.slow  # two engines are started, each of which imports torch
def test_ctrl_c_leaves_no_server_and_shows_the_rows_so_far(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    command = [sys.executable, "-m", "glmserve", "bench", "ladder", str(FIXTURE), *LOAD, "--num-prompts", "10", "--output", str(path)]
    environ = {**os.environ, "GLMSERVE_API_KEY": "of another server"}
    ladder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        assert ladder.stderr is not None
        first = next(line for line in ladder.stderr if "one at a time:" in line)
        assert "req" in first
        servers = wait_for_children(ladder.pid)
        ladder.send_signal(signal.SIGINT)
        out, _ = ladder.communicate(timeout=60)
    finally:
        ladder.kill()
    assert ladder.returncode == 130
    assert "0 one at a time" in out and "Cut short" in out
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()], "the second server is gone"
    rows = json.loads(path.read_text())["rows"]
    assert [row["number"] for row in rows] == [0] and rows[0]["figures"]["completed"] == 10


def test_a_folder_that_is_missing_is_told_once(glmserve: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    result = glmserve("bench", "ladder", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert result.stderr.count("nowhere") == 1 and "one at a time" not in result.stdout + result.stderr


def wait_for_children(pid: int) -> list[int]:
    deadline = time.monotonic() + 60
    while not (children := [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return children
