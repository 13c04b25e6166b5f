"""One message's answer as it came in: when each piece arrived and what went wrong.  A Receiver of bench's HttpClient."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec


class Reply:
    """Filled while it arrives, so that others can look at it meanwhile.  Moments are time.monotonic()."""

    def __init__(self) -> None:
        self.began = asyncio.Event()  # the first piece is there
        self.start()

    def start(self) -> None:
        """The message is sent now; what an earlier try brought is forgotten."""
        self.started = self.ended = time.monotonic()
        self.arrivals: list[float] = []  # of pieces with text in them; those that came in one read share a moment
        self.num_tokens: int | None = None  # what the server counted
        self.error = ""
        self._code = 0
        self._rest = b""
        self._is_stream = False

    @property
    def seconds(self) -> float:
        """From sending to the end."""
        return self.ended - self.started

    @property
    def num_moments(self) -> int:
        """How many times something arrived that a reader could see."""
        return len(set(self.arrivals))

    @property
    def status_code(self) -> int:
        """HTTP status; 0 before there is one."""
        return self._code

    def status(self, code: int) -> None:
        """Called first."""
        self._code = code

    def body(self, data: bytes, now: float) -> None:
        """A piece of the body: server-sent events, or a part of one JSON text."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._is_stream = True
                self._event(line[5:].strip(), now)
            elif not self._is_stream:
                self._rest = line + b"\n" + self._rest

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            return
        try:
            self.take(msgspec.json.decode(data), now)
        except msgspec.MsgspecError:
            self.fail(f"an event that is no JSON: {data[:80]!r}")

    def take(self, message: Any, now: float) -> None:
        """One JSON object of an answer: an OpenAI chunk or whole answer, or ChatGLM-6B's."""
        if not isinstance(message, dict):
            return
        if message.get("error"):
            self.fail(_words(message["error"]))
        if isinstance(usage := message.get("usage"), dict):
            self.num_tokens = usage.get("completion_tokens")
        if any(map(_text_of, message.get("choices") or [])) or message.get("response"):
            self.piece(now)

    def piece(self, now: float) -> None:
        """Some text arrived."""
        self.arrivals.append(now)
        self.began.set()

    def fail(self, error: str) -> None:
        """The first failure counts."""
        self.error = self.error or error

    def finish(self, now: float) -> Reply:
        """After the last byte, or after `fail`."""
        self.ended = now
        if not self._is_stream and self._rest:
            self._whole(now)
        if self._code not in (0, 200):
            self.fail(f"HTTP {self._code}")
            if not self.error.startswith("HTTP"):
                self.error = f"HTTP {self._code}: {self.error}"
        return self

    def _whole(self, now: float) -> None:
        try:
            self.take(msgspec.json.decode(self._rest), now)
        except msgspec.MsgspecError:
            self.fail(f"an answer that is no JSON: {self._rest[:80]!r}")


def _text_of(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    part = choice.get("delta") or choice.get("message") or choice
    return bool(isinstance(part, dict) and (part.get("content") or part.get("reasoning_content") or part.get("text")))


def _words(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)
