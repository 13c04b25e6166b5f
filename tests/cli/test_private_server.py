"""The server that `glmserve chat MODEL` starts: it is there while the command runs, and gone afterwards, however that ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from glmserve.cli.private_server import private_server
from glmserve.protocol.errors import ModelLoadError

Run = Callable[..., subprocess.CompletedProcess[str]]


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def test_a_folder_that_is_missing_is_told_in_the_servers_words(glmserve: Run, tmp_path: Path) -> None:
    result = glmserve("chat", str(tmp_path / "nowhere"), stdin="x\n")
    assert result.returncode == 1
    assert "there is no model folder at" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) < 20


def test_a_broken_config_ends_the_wait_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelLoadError, match="this server knows chatglm, llama"), private_server(str(tmp_path), start_timeout=120):
        pass


def test_it_is_gone_when_the_block_ends(demo: Path) -> None:
    with private_server(str(demo), start_timeout=300) as url:
        assert is_up(url)
    assert not is_up(url)


def test_it_is_gone_when_chat_is_terminated(demo: Path) -> None:
    chat = subprocess.Popen([sys.executable, "-m", "glmserve", "chat", str(demo)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        children = wait_for_children(chat.pid)
        chat.send_signal(signal.SIGTERM)
        assert chat.wait(60) == 143
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    finally:
        chat.kill()
        chat.communicate()


def wait_for_children(pid: int) -> list[int]:
    deadline = time.monotonic() + 60
    while not (children := [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return children
