"""Server-sent events, cheaply: each wake-up of an answer becomes one write, whatever number of tokens came together.

What an event looks like is the business of the protocol's writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glmserve.protocol.errors import GlmserveError
from glmserve.server.client_watch import ClientGoneError, ClientWatch
from glmserve.text.answer import ChoiceDelta, TextAnswer, Usage

CLIENT_SECONDS = 0.005  # a write that takes longer waited for the client; a shorter one is our own work
ERROR_SECONDS = 5.0  # how long a client that reads nothing may hold up the last event
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the events
]
encode_json = msgspec.json.Encoder().encode


def event(data: Any) -> bytes:
    """One event of any JSON value."""
    return b"data: " + encode_json(data) + b"\n\n"


class EventWriter(Protocol):
    """How one protocol writes an answer as events."""

    def events(self, deltas: list[ChoiceDelta]) -> bytes:
        """What is new; may be empty."""

    def end(self, usage: Usage) -> bytes:
        """What follows the last delta."""

    def failed(self, error: GlmserveError) -> bytes:
        """The stream ends early."""


class EventStream(Response):
    """Streams an answer.  The status waits for the first token, so that a request that fails before has a true one."""

    def __init__(self, answer: TextAnswer, writer: EventWriter, interval: float = 0.0) -> None:
        super().__init__()
        self._answer = answer
        self._writer = writer
        self._interval = interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._started = False
        try:
            async with ClientWatch(receive), self._answer:
                await self._stream(send)
        except ClientGoneError:
            if not self._started:
                raise  # counted as gone, not as an answer that failed
        except GlmserveError as error:
            if not self._started:
                raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ERROR_SECONDS):
                    await send({"type": "http.response.body", "body": self._writer.failed(error), "more_body": False})

    async def _stream(self, send: Send) -> None:
        answer, writer = self._answer, self._writer
        async for deltas in answer:
            body = writer.events(deltas)
            if answer.finished:
                body += writer.end(answer.usage)
            if not self._started:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                self._started = True
            if body:
                written = time.monotonic()
                await send({"type": "http.response.body", "body": body, "more_body": not answer.finished})
                if (waited := time.monotonic() - written) > CLIENT_SECONDS:
                    answer.slow_client_seconds += waited
            if self._interval and not answer.finished:
                await asyncio.sleep(self._interval)
