"""What one request saw: reads an answer as it comes and notes when each token was there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec


class Outcome(msgspec.Struct):
    """One request.  Times are seconds; `sent` counts from the start of the run, the others from the sending.

    TTFT is the time to the first event with text (or token ids) in it, ITL each gap between such events.  `output_tokens` is what
    the server counted; None where it does not say.
    """

    sent: float
    latency: float
    ttft: float | None
    itls: list[float]
    input_tokens: int
    output_tokens: int | None
    error: str = ""  # what kind of failure; empty is success
    detail: str = ""

    @property
    def tpot(self) -> float | None:
        """Mean time of a token after the first one: (E2E - TTFT) / (tokens - 1).  None for answers of one token."""
        if self.ttft is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    @property
    def brings_tokens(self) -> bool:
        return bool(self.text or self.token_ids or (self.delta and (self.delta.content or self.delta.reasoning_content)))


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class AnswerReader:
    """A Receiver of HttpClient: an OpenAI stream where `streaming`, else a body that is only waited for."""

    def __init__(self, started: float, input_tokens: int, streaming: bool) -> None:
        """`started`: time.monotonic() of the sending."""
        self._started = started
        self._input_tokens = input_tokens
        self._output_tokens: int | None = None
        self._streaming = streaming
        self._code = 0
        self._rest = b""
        self._token_times: list[float] = []
        self._last = started
        self._complete = False
        self._error = self._detail = ""

    @property
    def num_events(self) -> int:
        """Events with tokens so far."""
        return len(self._token_times)

    def status(self, code: int) -> None:
        self._code = code

    def body(self, data: bytes, now: float) -> None:
        self._last = now
        if not self._streaming or self._code != 200:
            self._rest += data
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:], now)

    def _event(self, data: bytes, now: float) -> None:
        if len(data) < 10 and data.strip() == b"[DONE]":
            self._complete = True
            return
        try:
            chunk = _decode_chunk(data)
        except msgspec.MsgspecError as error:
            self.fail("not an OpenAI stream", f"{error}: {data[:200]!r}")
            return
        if chunk.error is not None:
            self.fail("error in the stream", str(chunk.error))
        if chunk.usage is not None:
            self._count(chunk.usage)
        for choice in chunk.choices:
            if choice.brings_tokens:
                self._token_times.append(now)

    def _count(self, usage: _Usage) -> None:
        self._output_tokens = usage.completion_tokens
        if usage.prompt_tokens is not None:
            self._input_tokens = usage.prompt_tokens

    def fail(self, error: str, detail: str) -> None:
        """The first failure counts."""
        if not self._error:
            self._error, self._detail = error, detail[:500]

    def finish(self, run_started: float) -> Outcome:
        """After the last byte, or after `fail`."""
        if self._code not in (0, 200):
            self.fail(f"HTTP {self._code}", self._rest.decode(errors="replace"))
        elif self._streaming and not self._complete:
            self.fail("stream cut off", "it ended without [DONE]")
        elif self._streaming and not self._token_times:
            self.fail("empty answer", "the stream brought no token")
        elif not self._streaming:
            self._read_whole()
        times = self._token_times
        return Outcome(
            sent=self._started - run_started,
            latency=(times[-1] if times else self._last) - self._started,
            ttft=times[0] - self._started if times else None,
            itls=[later - earlier for earlier, later in pairwise(times)],
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            error=self._error,
            detail=self._detail,
        )

    def _read_whole(self) -> None:
        """ChatGLM-6B's own answer: {response, history, status, time}."""
        try:
            body = msgspec.json.decode(self._rest)
            if not isinstance(body["response"], str):
                raise TypeError("`response` is not a text")
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            self.fail("not a ChatGLM answer", f"{error!r}: {self._rest[:200]!r}")
