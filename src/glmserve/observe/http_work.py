"""What the HTTP process was doing with requests that the engine did not have yet.

The engine knows when it had no request; only here it can be told whether nobody had asked for anything, or whether a request was
being read or tokenized meanwhile.  Both use CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from glmserve.protocol.stats import DeviceSeconds

MAX_CHANGES = 4096  # what happened before that is forgotten; only an engine that was silent for long could still ask


class Doing(StrEnum):
    """What the requests that are furthest on are held up by; the values are fields of DeviceSeconds."""

    NOTHING = "idle_no_work"
    HTTP = "idle_http"
    TOKENIZING = "idle_tokenizing"


class HttpWork:
    """Counts requests between their acceptance and the engine, and splits the engine's time without work by what they were doing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_accepted = 0
        self._num_tokenizing = 0
        self._sent_at: float | None = None  # the engine may not have it yet
        self._changes: deque[tuple[float, Doing]] = deque([(clock(), Doing.NOTHING)], MAX_CHANGES)
        self._seconds = dict.fromkeys((Doing.HTTP, Doing.TOKENIZING), 0.0)

    def accept(self) -> None:
        """One more request that the engine does not have."""
        self._num_accepted += 1
        self._note()

    def leave(self, sent: bool) -> None:
        """One less: it is being sent to the engine, or it was refused."""
        self._num_accepted -= 1
        if sent:
            self._sent_at = self._clock()
        self._note()

    @contextmanager
    def tokenizing(self) -> Iterator[None]:
        """A request's text becomes tokens within the block."""
        self._num_tokenizing += 1
        self._note()
        try:
            yield
        finally:
            self._num_tokenizing -= 1
            self._note()

    def hear(self, seconds: DeviceSeconds, without_work: Sequence[tuple[float, float]], at: float) -> None:
        """What the engine said at `at`: its counters, which are completed, and when it had no request, not told before."""
        for start, end in without_work:
            self._split(start, end)
        if self._sent_at is not None and self._sent_at < at:
            self._sent_at = None
            self._note()
        seconds.idle_http, seconds.idle_tokenizing = self._seconds[Doing.HTTP], self._seconds[Doing.TOKENIZING]
        seconds.idle_no_work = max(0.0, seconds.idle_no_work - seconds.idle_http - seconds.idle_tokenizing)

    def forget(self) -> None:
        """The engine was lost: the next one counts from zero."""
        self._seconds = dict.fromkeys(self._seconds, 0.0)

    def _note(self) -> None:
        doing = Doing.HTTP if self._num_accepted or self._sent_at is not None else Doing.NOTHING
        if self._num_tokenizing:
            doing = Doing.TOKENIZING
        if doing is not self._changes[-1][1]:
            self._changes.append((self._clock(), doing))

    def _split(self, start: float, end: float) -> None:
        changes = self._changes
        while len(changes) > 1 and changes[1][0] <= start:
            changes.popleft()
        since, doing = start, changes[0][1]
        for at, then in changes:
            if at >= end:
                break
            if at > since:
                self._add(doing, at - since)
                since = at
            doing = then
        self._add(doing, end - since)

    def _add(self, doing: Doing, seconds: float) -> None:
        if doing in self._seconds:
            self._seconds[doing] += seconds
