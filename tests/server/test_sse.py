"""A client that takes what is written slowly is told from a server that writes slowly."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from glmserve.server import sse
from glmserve.server.routes.chatglm import ChatEvents
from glmserve.text.answer import ChoiceDelta, Usage


class FiveDeltas:
    """An answer of five tokens, each a second after the one before."""

    usage = Usage(1, 5, 0)

    def __init__(self, clock: list[float]) -> None:
        self.slow_client_seconds = 0.0
        self._clock = clock
        self._left = 5

    @property
    def finished(self) -> bool:
        return self._left == 0

    async def __aenter__(self) -> FiveDeltas:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> FiveDeltas:
        return self

    async def __anext__(self) -> list[ChoiceDelta]:
        if self._left == 0:
            raise StopAsyncIteration
        self._left -= 1
        self._clock[0] += 1
        return [ChoiceDelta(0, "x", [7])]


@pytest.mark.parametrize("seconds_a_write, waited", [(0.001, 0.0), (0.5, 2.5)])
async def test_the_time_of_writes_that_wait_is_the_client_s(monkeypatch: pytest.MonkeyPatch, seconds_a_write: float, waited: float) -> None:
    clock, sent = [100.0], []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)
        clock[0] += seconds_a_write

    monkeypatch.setattr(sse, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    answer: Any = FiveDeltas(clock)
    await sse.EventStream(answer, ChatEvents())({}, receive, send)
    assert len(sent) == 6 and sent[-1]["more_body"] is False
    assert answer.slow_client_seconds == pytest.approx(waited)
