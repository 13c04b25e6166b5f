"""`glmserve serve` that cannot start: one screen, what to do, and a status that a script can read."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def assert_one_screen(result: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert result.returncode == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) < 20


def test_a_taken_port(glmserve: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_screen(glmserve("serve", "demo", "--host", "127.0.0.1", "--port", port), 1, f"port {port} is taken")


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_no_model_there(glmserve: Run, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_screen(glmserve("serve", str(tmp_path / folder), "--port", "0"), 1, str(tmp_path / folder))


def test_settings_come_from_a_file_and_are_checked(glmserve: Run, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("max-num-seqs: many\n")
    assert_one_screen(glmserve("serve", "demo", "--config", str(config)), 2, "max_num_seqs cannot be 'many'")


def test_a_misspelled_variable_is_told(glmserve: Run, tmp_path: Path) -> None:
    result = glmserve("serve", str(tmp_path), "--port", "0", GLMSERVE_MAX_NUM_SEQ="3")
    assert_one_screen(result, 1, "did you mean GLMSERVE_MAX_NUM_SEQS?")
