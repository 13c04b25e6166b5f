"""`glmserve deploy` as a user types it: where the file lands, and what is said when it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmserve.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_file_goes_where_it_was_asked_to_and_over_nothing(glmserve: Run, tmp_path: Path) -> None:
    file = tmp_path / "demo.service"
    first = glmserve("deploy", "systemd", "demo", "--output", str(file))
    assert first.returncode == 0 and first.stdout == ""
    assert "Nothing has been changed" in first.stderr and f"sudo cp {file} /etc/systemd/system/demo.service" in first.stderr
    file.write_text("mine")
    again = glmserve("deploy", "systemd", "demo", "--output", str(file))
    assert again.returncode == 2 and "--force" in again.stderr and file.read_text() == "mine"
    assert glmserve("deploy", "systemd", "demo", "--output", str(file), "--force").returncode == 0
    assert "ExecStart=" in file.read_text()


def test_a_dash_shows_the_file_and_keeps_the_words_apart(glmserve: Run) -> None:
    shown = glmserve("deploy", "compose", "--output", "-", "--device", "cpu")
    assert shown.returncode == 0 and shown.stdout.startswith("# demo on glmserve") and "services:" in shown.stdout
    assert "docker compose" in shown.stderr and "is written" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["k8s"], 2, "Did you mean kubernetes?"),
        (["systemd", "no/such/folder"], 1, "there is no model folder"),
        (["systemd", "--output", "/proc/nothing/here.service"], 2, "cannot be written"),
        (["systemd", "--port", "many"], 2, "port cannot be 'many'"),
        (["systemd", "--port", "0"], 2, "--port 0"),
        (["systemd", "demo", "--max-model-len", "100000"], 2, "100000 exceeds the 512 tokens"),
        (["systemd", "--name", "glmserve"], 2, "GLMSERVE_PORT"),
        (["systemd", "--name", "Foo Bar"], 2, "--name cannot be 'Foo Bar': it takes a small letter, then small letters, digits and dashes"),
        (["kubernetes", "--claim", "a_b"], 2, "--claim cannot be 'a_b': it takes the name of a claim"),
        (["systemd", "--replicas", "3"], 2, "--replicas is for kubernetes, and does nothing for systemd"),
        (["compose", "--user", "me"], 2, "--user is for supervisor, systemd, and does nothing for compose"),
        (["systemd", "--user", "a b"], 2, "user cannot be 'a b'"),
        (["systemd", "demo", "--replace", "x.conf"], 2, "glmserve deploy supervisor"),
        (["supervisor", "--replace", "x.conf"], 2, "which model"),
        (["supervisor", "demo", "--replace", "no.conf"], 2, "no.conf cannot be read"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_with_what_to_do(
    arguments: list[str], status: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["glmserve", "deploy", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == status and says in said and "unexpected" not in said


def test_the_old_file_is_never_written_over(glmserve: Run, tmp_path: Path) -> None:
    old = tmp_path / "chatglm.conf"
    old.write_text("[program:chatglm]\ncommand=python api.py --port 7860\n")
    result = glmserve("deploy", "supervisor", "demo", "--replace", str(old), "--output", str(old), "--force")
    assert result.returncode == 2 and "the old program's own file" in result.stderr
    assert old.read_text().startswith("[program:chatglm]\ncommand=python api.py")


def test_settings_of_a_file_become_flags(glmserve: Run, tmp_path: Path) -> None:
    settings = tmp_path / "serve.yaml"
    settings.write_text("port: 9100\nmax-num-seqs: 12\n")
    shown = glmserve("deploy", "systemd", "--config", str(settings), "--device", "cpu", "--output", "-", GLMSERVE_PORT="1")
    assert "--port 9100" in shown.stdout and "--max-num-seqs 12" in shown.stdout
