"""One server as seen from outside: its state, its history of metrics, its slow requests.  Knows no terminal.

A server that cannot be reached, that is loading or that has no metrics is a state to show, never an error here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import httpx

from glmserve.observe.readings import History, Readings
from glmserve.observe.signals import gpu_shares, read_all, unreported

WINDOW_SECONDS = 10.0  # what "now" means: rates and quantiles are those of this long
NUM_SLOW = 20


class State(StrEnum):
    """How a server is, as far as can be told from outside."""

    UNKNOWN = "not asked yet"
    READY = "ready"
    NOT_READY = "not ready"
    UNREACHABLE = "unreachable"
    NO_METRICS = "no metrics"


class WatchedServer:
    """`look` asks the server; all else tells what came of it.  `history_seconds` is how far back rates can be taken."""

    def __init__(self, url: str, clock: Callable[[], float], history_seconds: float = WINDOW_SECONDS, slow_over: float = 2.0) -> None:
        self.url = url
        self.state = State.UNKNOWN
        self.reason = ""  # why it is not ready or not reachable
        self.since = clock()  # the moment of its last change of state
        self.history = History(history_seconds)
        self.slow: list[dict[str, Any]] | None = None  # None where the server does not tell ...
        self.slow_reason = ""  # ... and why
        self._clock = clock
        self._slow_over = slow_over

    @property
    def reachable(self) -> bool:
        """Whether the last look found metrics."""
        return self.state in (State.READY, State.NOT_READY)

    @property
    def model(self) -> str:
        """The model's name, or nothing."""
        last = self.history.last
        names = last.by("num_requests_running", "model_name") if last else {}
        return ", ".join(names)

    @property
    def num_restarts(self) -> int:
        """How often the server restarted its engine."""
        return int(self.history.last.total("engine_restarts_total") or 0) if self.history.last else 0

    @property
    def engine(self) -> str:
        """Which server it is, by the prefix of its metrics."""
        last = self.history.last
        return last.prefix.rstrip(":") if last else ""

    def values(self, seconds: float = WINDOW_SECONDS) -> dict[str, float | None]:
        """Every signal now; all None where the server cannot be reached."""
        return read_all(self.history if self.reachable else History(1.0), seconds)

    def device_shares(self, seconds: float = WINDOW_SECONDS) -> dict[str, float]:
        """Share of the device's time by activity; empty where not reported."""
        return gpu_shares(self.history, seconds) if self.reachable else {}

    def unreported(self) -> list[str]:
        """Signals that this server has no metric for."""
        return unreported(self.history.last) if self.history.last else []

    async def look(self, http: httpx.AsyncClient) -> None:
        """Ask for metrics, readiness and slow requests.  Never raises for what the server does."""
        page, ready, slow = await asyncio.gather(
            self._get(http, "/metrics"), self._get(http, "/ready"), self._get(http, f"/slow?over={self._slow_over:g}&last={NUM_SLOW}")
        )
        if isinstance(page, str):
            self._change(State.UNREACHABLE, page)
            return
        if not self._take_page(page):
            return
        reason = _not_ready_because(ready)
        self._change(State.READY if reason is None else State.NOT_READY, reason or "")
        self.slow, self.slow_reason = _slow_requests(slow)

    async def _get(self, http: httpx.AsyncClient, path: str) -> httpx.Response | str:
        """The answer, or in words why there is none."""
        try:
            return await http.get(self.url + path)
        except httpx.TimeoutException:
            return "it does not answer in time"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__

    def _take_page(self, page: httpx.Response) -> bool:
        if page.status_code != 200:
            self._change(State.NO_METRICS, f"GET /metrics answers {page.status_code}")
            return False
        try:
            readings = Readings.parse(page.text, self._clock())
        except ValueError:
            self._change(State.NO_METRICS, "what GET /metrics gives is not Prometheus' text format")
            return False
        if not readings.families:
            self._change(State.NO_METRICS, "GET /metrics gives an empty page")
            return False
        if not self.reachable:
            self.history.clear()  # rates over the time in which nobody knows would be wrong
        self.history.add(readings)
        return True

    def _change(self, state: State, reason: str) -> None:
        if state is not self.state:
            self.since = self._clock()
        self.state, self.reason = state, reason


def _not_ready_because(answer: httpx.Response | str) -> str | None:
    """None where the server is ready or has no /ready, as vLLM has none."""
    if isinstance(answer, str) or answer.status_code != 503:
        return None
    try:
        return str(answer.json()["reason"])
    except (ValueError, LookupError, TypeError):
        return "/ready answers 503"


def _slow_requests(answer: httpx.Response | str) -> tuple[list[dict[str, Any]] | None, str]:
    """(requests, "") or (None, why there are none)."""
    if not isinstance(answer, str) and answer.status_code == 401:
        return None, "it wants a key for that: --api-key or GLMSERVE_API_KEY"
    if isinstance(answer, str) or answer.status_code != 200:
        return None, "it has no GET /slow"
    try:
        requests = answer.json()["requests"]
        return [dict(entry) for entry in requests], ""
    except (ValueError, LookupError, TypeError):
        return None, "its GET /slow is another one"
