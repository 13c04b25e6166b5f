"""Who gets in: a bound on requests and on prompt tokens, checked before any costly work.

A place is reserved before the body is there, counts its size once it is, is corrected once the prompt is tokenized, and released
exactly once.
The engine has its own queue; this one bounds what the whole service has accepted.  With `--batching serial` it also keeps turns: who
has a place waits until everybody before has been answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from glmserve.observe.http_work import HttpWork
from glmserve.protocol.errors import DeadlineExceededError, EngineUnavailableError, InvalidRequestError, OverloadedError
from glmserve.server.errors import BodyTimeoutError

BYTES_PER_TOKEN = 4  # of a JSON body: about right for English, and Chinese in UTF-8 is near it
MAX_RETRY_AFTER = 60
SHUTTING_DOWN = "the server is shutting down: send the request to another one, or again in a moment"


def estimate_tokens(num_bytes: int) -> int:
    """Prompt tokens to expect in a body of `num_bytes`, before it is read."""
    return num_bytes // BYTES_PER_TOKEN + 1


class Place:
    """A reserved share of the service.  Leaving the `with` block releases it, unless `keep` was called."""

    def __init__(self, admission: Admission, num_requests: int, num_tokens: int) -> None:
        self.num_requests = num_requests
        self.num_tokens = num_tokens
        self._admission = admission
        self.since = time.monotonic()
        self._on_its_way = True  # the engine does not have it yet
        self._kept = False
        self._released = False
        self.has_turn = False
        self.turn_seconds = 0.0  # waited for it

    def expect(self, num_bytes: int) -> None:
        """The body is there: count the tokens that so many bytes are likely to be.  Raises OverloadedError where they do not fit now."""
        self._admission._move(self, self.num_requests, estimate_tokens(num_bytes))

    async def wait_turn(self, timeout: float) -> None:
        """Wait until all requests before are answered, where they are served one at a time.

        Raises DeadlineExceededError after `timeout` seconds.
        """
        began = time.monotonic()
        await self._admission._wait_turn(self, timeout)
        self.turn_seconds = time.monotonic() - began

    def correct(self, num_requests: int, num_tokens: int) -> None:
        """Replace the estimate by what the request really is.

        Raises OverloadedError where that does not fit now, InvalidRequestError where it never will.
        """
        self._admission._move(self, num_requests, num_tokens)
        self._end_way(sent=True)  # what follows is the sending

    def keep(self) -> None:
        """Somebody else will call `release`: the answer outlives the function that reserved its place."""
        self._kept = True

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if not self._released:
            self._released = True
            self._end_way(sent=False)
            self._admission._leave(self, time.monotonic() - self.since)

    def _end_way(self, sent: bool) -> None:
        if self._on_its_way:
            self._on_its_way = False
            self._admission.http_work.leave(sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._kept:
            self.release()


class Admission:
    """Counts what is accepted.  A prompt that finds the service empty always fits, however long it is."""

    def __init__(self, max_requests: int, max_tokens: int, one_at_a_time: bool = False, http_work: HttpWork | None = None) -> None:
        """`http_work` is told of requests that are accepted, until they are sent to the engine or refused."""
        self.http_work = http_work or HttpWork()
        self._turn = asyncio.Lock() if one_at_a_time else None  # first come, first served
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.num_requests = 0
        self.num_tokens = 0
        self.num_rejected = 0
        self._mean_seconds = 1.0  # how long a place was held lately
        self._draining = False
        self.arriving: set[asyncio.Timeout] = set()  # of bodies that are being read

    @property
    def draining(self) -> bool:
        """True once `close` was called."""
        return self._draining

    def close(self) -> None:
        """Accept nothing more: the server is shutting down."""
        self._draining = True

    def cut_arriving(self) -> None:
        """Wait for no body any longer that has not come whole: its request has not been accepted."""
        for timeout in self.arriving:
            if not timeout.expired():  # else it cannot be changed any more
                timeout.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def arrival(self, timeout: float) -> AsyncIterator[None]:
        """Around the reading of a body.

        Raises BodyTimeoutError after `timeout` seconds, EngineUnavailableError where the server shuts down meanwhile.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                self.arriving.add(limit)
                try:
                    yield
                finally:
                    self.arriving.discard(limit)
        except TimeoutError:
            if self._draining:
                raise EngineUnavailableError(SHUTTING_DOWN) from None
            raise BodyTimeoutError(f"the body did not come whole within {timeout:g} s: send the request again") from None

    def reserve(self, num_bytes: int) -> Place:
        """A place for a request; `num_bytes` are those of its body as far as it is there.

        Raises EngineUnavailableError while the server shuts down, OverloadedError where the service is full.
        """
        if self._draining:
            raise EngineUnavailableError(SHUTTING_DOWN)
        num_tokens = estimate_tokens(num_bytes)
        self._check(self.num_requests, self.num_tokens, 1, num_tokens)
        self.num_requests += 1
        self.num_tokens += num_tokens
        self.http_work.accept()
        return Place(self, 1, num_tokens)

    def retry_after(self) -> int:
        """Seconds until a place is likely to be free: a place is freed every (mean time held / places held) seconds."""
        return min(MAX_RETRY_AFTER, max(1, math.ceil(self._mean_seconds / max(1, self.num_requests))))

    def _check(self, requests_held: int, tokens_held: int, num_requests: int, num_tokens: int) -> None:
        if requests_held == 0:
            return
        if requests_held + num_requests > self.max_requests:
            self._reject(f"the server is at its limit of {self.max_requests} requests at a time")
        if tokens_held + num_tokens > self.max_tokens:
            self._reject(f"the server is at its limit of {self.max_tokens} prompt tokens at a time")

    def _reject(self, reason: str) -> None:
        self.num_rejected += 1
        wait = self.retry_after()
        raise OverloadedError(f"{reason}: try again in {wait} s", retry_after=wait)

    def _move(self, place: Place, num_requests: int, num_tokens: int) -> None:
        if place._released:
            return
        if num_requests > self.max_requests:
            raise InvalidRequestError(f"this asks for {num_requests} answers, and the server takes at most {self.max_requests}", "n")
        self._check(self.num_requests - place.num_requests, self.num_tokens - place.num_tokens, num_requests, num_tokens)
        self.num_requests += num_requests - place.num_requests
        self.num_tokens += num_tokens - place.num_tokens
        place.num_requests, place.num_tokens = num_requests, num_tokens

    async def _wait_turn(self, place: Place, timeout: float) -> None:
        if self._turn is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceededError(f"its turn did not come within {timeout:g} s: requests are served one at a time here") from None
        place.has_turn = True

    def _leave(self, place: Place, seconds: float) -> None:
        if place.has_turn and self._turn is not None:
            self._turn.release()
        self.num_requests -= place.num_requests
        self.num_tokens -= place.num_tokens
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
