"""What a newcomer sees: help, version, and errors of one screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from glmserve.cli import main as entry
from glmserve.config import EngineConfig, ServerConfig, flag_name
from glmserve.version import __version__

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_help_begins_with_what_to_do(glmserve: Run) -> None:
    result = glmserve("--help")
    assert result.returncode == 0
    assert "glmserve serve demo" in result.stdout
    assert "glmserve chat" in result.stdout


def test_serve_help_shows_every_flag_in_full_on_a_narrow_screen(glmserve: Run) -> None:
    shown = glmserve("serve", "--help").stdout
    flags = {flag_name(name) for kind in (EngineConfig, ServerConfig) for name in kind.model_fields if name != "model"}
    assert not {flag for flag in flags if flag not in shown}
    assert "Batching and memory" in shown
    assert "default: 256" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_version(glmserve: Run) -> None:
    assert glmserve("--version").stdout == f"glmserve {__version__}\n"


def test_the_command_line_loads_neither_torch_nor_fastapi() -> None:
    code = "import glmserve.cli.main, sys; print([name for name in ('torch', 'fastapi', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_flag_is_refused_with_a_guess(glmserve: Run) -> None:
    result = glmserve("serve", "--max-num-seq", "3")
    assert result.returncode == 2
    assert "--max-num-seqs" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_value_is_one_screen_and_exit_status_2(glmserve: Run) -> None:
    result = glmserve("serve", "demo", "--port", "99999", GLMSERVE_DEFAULT_TOP_P="7")
    assert result.returncode == 2
    assert "port cannot be '99999': it takes a whole number from 0 to 65535." in result.stderr
    assert "GLMSERVE_DEFAULT_TOP_P" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unforeseen_error_is_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def break_down() -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(entry, "app", break_down)
    monkeypatch.delenv("GLMSERVE_DEBUG", raising=False)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: the sky fell" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("GLMSERVE_DEBUG", "1")
    with pytest.raises(SystemExit):
        entry.main()
    assert "Traceback" in capsys.readouterr().err
