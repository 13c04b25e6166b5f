"""One line of JSON for each request that ended or was refused; the last ones are kept for `GET /slow`.

Prompts and answers are never logged.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol, TextIO

import msgspec

from glmserve.observe.request_record import RequestLine, RequestRecord, line_of
from glmserve.observe.slow import reason_of

KEPT_LINES = 1000
MAX_ERROR = 300  # characters: a client's own words may stand in it
REFUSALS_A_SECOND = 5  # of one kind; a crowd at a full server must not fill the disk


class Traces(Protocol):
    """What the log asks of `observe.traces`, which needs an extra."""

    def add(self, record: RequestRecord) -> None: ...

    def close(self) -> None: ...


class RefusalLine(msgspec.Struct):
    """A request that was turned away before any work."""

    timestamp: str
    event: str
    request_id: str
    path: str
    status: int
    code: str | None
    error: str
    not_logged: int = 0  # refusals of this kind since the last line about one


class ExplainedLine(RequestLine):
    """A request's line with the reason."""

    cause: str = ""
    why: str = ""


class RequestLog:
    """Writes lines to `stream` (stderr by default) at level info and below; keeps the last requests whatever the level."""

    def __init__(self, stream: TextIO | None = None, level: str = "info", clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._enabled = level in ("debug", "info")
        self._recent: deque[ExplainedLine] = deque(maxlen=KEPT_LINES)
        self.traces: Traces | None = None  # told of each finished request too
        self._throttles: dict[tuple[int, str | None], _Throttle] = {}
        self._clock = clock

    def write(self, record: RequestRecord) -> None:
        """One finished request."""
        if self.traces is not None:
            self.traces.add(record)
        line = explain(line_of(record, _now()))
        self._recent.append(line)
        self._print(line)

    def refuse(self, request_id: str, path: str, status: int, code: str | None, error: str) -> None:
        """A request was turned away.  Many of one kind within a second become one line, which says how many."""
        throttle = self._throttles.setdefault((status, code), _Throttle())
        if (not_logged := throttle.let_through(self._clock())) is not None:
            self._print(RefusalLine(_now(), "refused", request_id, path, status, code, error[:MAX_ERROR], not_logged))

    def slowest(self, over: float, last: int) -> list[ExplainedLine]:
        """The last requests that took at least `over` seconds, newest first."""
        return list(islice((line for line in reversed(self._recent) if line.e2e_seconds >= over), last))

    def _print(self, line: msgspec.Struct) -> None:
        if self._enabled:
            self._stream.write(msgspec.json.encode(line).decode() + "\n")
            self._stream.flush()


def explain(line: RequestLine) -> ExplainedLine:
    """The line with its reason."""
    reason = reason_of(line)
    return ExplainedLine(**msgspec.structs.asdict(line), cause=reason.cause, why=reason.why)


class _Throttle:
    """Lets a few through in each second."""

    def __init__(self) -> None:
        self._second = -1
        self._num_logged = 0
        self._num_held = 0

    def let_through(self, now: float) -> int | None:
        """How many were held since the last that was let through; None to hold this one too."""
        if int(now) != self._second:
            self._second, self._num_logged = int(now), 0
        if self._num_logged >= REFUSALS_A_SECOND:
            self._num_held += 1
            return None
        self._num_logged += 1
        held, self._num_held = self._num_held, 0
        return held


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
