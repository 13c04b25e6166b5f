"""Rung after rung: start a server, load it, read its figures, end it.  Whoever calls it says how a server is started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import httpx

from glmserve.observe.readings import Readings
from glmserve.protocol.errors import GlmserveError
from glmserve.tools.bench.facts import ask_facts
from glmserve.tools.bench.load import run_load
from glmserve.tools.bench.plan import make_plans
from glmserve.tools.bench.server_watch import ServerWatch
from glmserve.tools.ladder.results import Ladder, RungResult, figures_of
from glmserve.tools.ladder.rungs import Rung
from glmserve.tools.ladder.settings import LadderConfig

StartServer = Callable[[Sequence[str]], AbstractContextManager[str]]
PATIENCE = ("--first-token-timeout", "3600", "--request-timeout", "3600")  # the lowest rungs let clients wait, and that is to be seen
MOST_WARMUPS = 64


class Display(Protocol):
    """Whoever watches."""

    def starting(self, rung: Rung) -> None:
        """Its server is being started."""

    def loading(self, rung: Rung, seconds: float, num_done: int) -> None:
        """It has been under load for so long, and answered so many."""

    def finished(self, row: RungResult) -> None:
        """It is done, or has failed."""


class Climb:
    """One run.  `ladder` grows by a row a rung, so that what is known survives a Ctrl-C."""

    def __init__(self, ladder: Ladder, config: LadderConfig, start_server: StartServer, display: Display) -> None:
        self._ladder = ladder
        self._config = config
        self._start_server = start_server
        self._display = display

    def run(self) -> None:
        """All rungs; one that fails is a row that says why, and the others still run."""
        for rung in self._config.chosen:
            row = RungResult.of(rung)
            self._display.starting(rung)
            if not (self._ladder.device and self._lacks(rung, row)):
                self._try(rung, row)
            self._ladder.rows.append(row)
            self._display.finished(row)
        self._ladder.complete = True

    def _try(self, rung: Rung, row: RungResult) -> None:
        started = time.monotonic()
        try:
            with self._start_server([*rung.flags, *PATIENCE]) as url:
                row.start_seconds = time.monotonic() - started
                self._ladder.device = device_of(url)
                if not self._lacks(rung, row):
                    self._measure(url, rung, row)
        except GlmserveError as error:
            row.missing = str(error)

    def _lacks(self, rung: Rung, row: RungResult) -> bool:
        if rung.needs == "a GPU" and self._ladder.device.startswith("CPU"):
            row.missing = "needs a GPU; this machine serves on its CPU"
        return bool(row.missing)

    def _measure(self, url: str, rung: Rung, row: RungResult) -> None:
        config = self._config.load_on(url, min(self._config.concurrency, MOST_WARMUPS) if rung.together else 1)
        started: list[float] = []

        def note(num_done: int, num_events: int) -> None:
            started[:] = started or [time.monotonic()]
            self._display.loading(rung, time.monotonic() - started[0], num_done)

        watch = ServerWatch(url, None)
        result = asyncio.run(run_load(make_plans(config, ask_facts(config)), note, watch))
        row.figures = figures_of(result, watch.figures(), self._config)
        if row.figures is None:
            errors = {outcome.error: outcome.detail for outcome in result.outcomes}
            told = "; ".join(f"{kind}: {detail}" for kind, detail in errors.items())
            row.missing = told or f"no answer within {self._config.duration:g} s: give it longer with --duration"


def device_of(url: str) -> str:
    """What the server computes on: "NVIDIA H200", "CPU"; empty where it does not say."""
    try:
        page = Readings.parse(httpx.get(f"{url}/metrics", timeout=10.0, trust_env=False).raise_for_status().text, time.monotonic())
    except (httpx.HTTPError, ValueError):
        return ""
    return next((name for labels in page.series("device_info") if (name := dict(labels).get("device_name"))), "")
