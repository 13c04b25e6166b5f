"""`glmserve chat`, with a pipe and at a terminal, against a scripted server."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.scripted_server import ScriptedServer

Run = Callable[..., subprocess.CompletedProcess[str]]


def said(server: ScriptedServer, turn: int) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in server.requests[turn]["messages"]]


def test_each_line_of_a_pipe_is_a_turn(glmserve: Run, scripted_server: ScriptedServer) -> None:
    scripted_server.script = [["你", "好"], ["fine"]]
    result = glmserve("chat", scripted_server.url, stdin="hello\n\nhow are you?\n")
    assert (result.returncode, result.stdout) == (0, "你好\nfine\n")
    assert said(scripted_server, 1) == [("user", "hello"), ("assistant", "你好"), ("user", "how are you?")]


def test_new_forgets_and_exit_leaves(glmserve: Run, scripted_server: ScriptedServer) -> None:
    scripted_server.script = [["a"], ["b"]]
    result = glmserve("chat", "--url", scripted_server.url, "--system", "Be brief.", stdin="one\n/new\ntwo\n/exit\nthree\n")
    assert result.stdout == "a\nb\n"
    assert said(scripted_server, 1) == [("system", "Be brief."), ("user", "two")]


def test_help_and_an_unknown_command_are_not_sent(glmserve: Run, scripted_server: ScriptedServer) -> None:
    result = glmserve("chat", scripted_server.url, stdin="/help\n/nwe\n")
    assert (result.returncode, result.stdout, scripted_server.requests) == (0, "", [])
    assert "There is no command /nwe" in result.stderr


@pytest.mark.parametrize("flag", [[], ["--url"]])
def test_a_server_may_be_named_without_its_scheme(glmserve: Run, scripted_server: ScriptedServer, flag: list[str]) -> None:
    scripted_server.script = [["a"]]
    result = glmserve("chat", *flag, scripted_server.url.removeprefix("http://"), stdin="x\n")
    assert (result.returncode, result.stdout) == (0, "a\n")


def test_settings_reach_the_server(glmserve: Run, scripted_server: ScriptedServer) -> None:
    scripted_server.script = [["a"]]
    glmserve("chat", scripted_server.url, "--temperature", "0", "--max-tokens", "7", stdin="x\n", GLMSERVE_API_KEY="k1,k2")
    request = scripted_server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("scripted", 0, 7)
    assert "top_p" not in request
    assert scripted_server.keys == ["Bearer k1"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"error": {"message": "the prompt is too long"}}), "the prompt is too long"),
        ((401, {"error": {"message": "a key is missing"}}), "--api-key"),
        ((502, "a proxy's page"), "502"),
    ],
)
def test_a_refusal_is_shown_in_the_servers_words(
    glmserve: Run, scripted_server: ScriptedServer, answer: tuple[int, object], words: str
) -> None:
    scripted_server.script = [answer]
    result = glmserve("chat", scripted_server.url, stdin="x\n")
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no such host"])
def test_no_server_there_says_how_to_start_one(glmserve: Run, url: str) -> None:
    result = glmserve("chat", "--url", url, stdin="x\n")
    assert result.returncode == 1
    assert "glmserve serve demo" in result.stderr
    assert len(result.stderr.splitlines()) < 20


class Terminal:
    """`glmserve chat` at a real terminal of which the test is the person."""

    def __init__(self, url: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        command, environ = [sys.executable, "-m", "glmserve", "chat", url], {**os.environ, "TERM": "dumb", "HOME": str(home)}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environ)
        os.close(slave)
        self.shown, self._read_up_to = "", 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, words: str, press_ctrl_c: bool = False) -> None:
        """Read on until `words` come, after those waited for last; meanwhile press Ctrl-C once a second where asked to.

        Once is not enough: one that arrives just before Python begins to wait for a key is seen at the next key only.
        """
        deadline, next_press = time.monotonic() + 60, time.monotonic()
        while (found := self.shown.find(words, self._read_up_to)) < 0:
            assert time.monotonic() < deadline, f"{words!r} did not come; the screen shows {self.shown!r}"
            if press_ctrl_c and time.monotonic() >= next_press:
                self.process.send_signal(signal.SIGINT)
                next_press = time.monotonic() + 1
            if select.select([self._master], [], [], 0.1)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        self._read_up_to = found + len(words)

    def leave(self) -> int:
        """Press Ctrl-D until the program has ended: one that arrives before the prompt is shown is lost, as at any terminal."""
        for _ in range(60):
            self.type("\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        raise AssertionError("Ctrl-D does not end the conversation")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(scripted_server: ScriptedServer, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(scripted_server.url, tmp_path)
    yield terminal
    terminal.end()


def test_ctrl_c_stops_the_answer_on_the_server_and_not_the_program(terminal: Terminal, scripted_server: ScriptedServer) -> None:
    scripted_server.script = [["so it be", "gins"], ["second answer"]]
    scripted_server.hang_after_pieces.set()
    terminal.wait_for("you> ")
    terminal.type("a long story\n")
    terminal.wait_for("so it begins")
    terminal.wait_for("(stopped)", press_ctrl_c=True)
    assert scripted_server.client_went_away.wait(60)
    scripted_server.hang_after_pieces.clear()
    terminal.type("and now?\n")
    terminal.wait_for("second answer")
    assert said(scripted_server, 1) == [("user", "a long story"), ("assistant", "so it begins"), ("user", "and now?")]
    terminal.type("/exit\n")
    assert terminal.process.wait(60) == 0


def test_an_error_ends_a_turn_and_not_the_conversation(terminal: Terminal, scripted_server: ScriptedServer) -> None:
    scripted_server.script = [(503, {"error": {"message": "the queue is full"}}), ["back again"]]
    terminal.wait_for("you> ")
    terminal.type("one\n")
    terminal.wait_for("the queue is full")
    terminal.type("two\n")
    terminal.wait_for("back again")
    assert said(scripted_server, 1) == [("user", "two")]
    terminal.wait_for("you> ")
    terminal.wait_for("Ctrl-D leaves", press_ctrl_c=True)
    assert terminal.leave() == 0
