"""A server that watches its own metrics: every few seconds it reads them, and judges alert rules and the need for replicas by them.

What goes wrong here is logged and never reaches a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from prometheus_client import Metric

from glmserve.observe.alert_actions import AlertSender
from glmserve.observe.alert_rules import AlertRules
from glmserve.observe.alerts import Alerts
from glmserve.observe.readings import History, Readings
from glmserve.observe.scale import ScaleSignal

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # or more often where alert rules want it


class SelfWatch:
    """`collect` gives the metrics, `max_num_seqs` the places in the engine's batch, None while no engine is ready."""

    def __init__(
        self,
        collect: Callable[[], Iterable[Metric]],
        max_num_seqs: Callable[[], int | None],
        scale: ScaleSignal,
        window: float,
        rules: AlertRules | None = None,
        server: str = "this server",
    ) -> None:
        """`window` is how many seconds of history the scale signal looks back on."""
        self.scale = scale
        self._collect = collect
        self._max_num_seqs = max_num_seqs
        self._alert_interval = rules.interval if rules else LOOK_SECONDS
        self._history = History(max(window, rules.longest_window if rules else 0.0) + LOOK_SECONDS)
        self._alerts = Alerts(rules, server) if rules else None
        self._sender = AlertSender(rules) if rules else None
        self._next_alerts = 0.0
        self._looks_while_ready = 0

    async def run(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                self.look(clock())
            except Exception:
                logger.exception("the server could not judge its own metrics; it goes on serving")
            await asyncio.sleep(min(LOOK_SECONDS, self._alert_interval))

    def look(self, at: float) -> None:
        """Once, now."""
        readings, num_places = Readings(self._collect(), at), self._max_num_seqs()
        self._history.add(readings)
        self.scale.look(self._history, at, num_places)
        if self._alerts is None or self._sender is None or at < self._next_alerts:
            return
        self._next_alerts = at + self._alert_interval
        for notice in self._alerts.look(self._history, at):
            self._sender.send(notice)
        self._looks_while_ready += num_places is not None
        if self._looks_while_ready == 2 and num_places is not None:  # by then the GPU has been asked too
            for line in self._alerts.unwatchable(readings):
                logger.warning("%s", line)

    def close(self) -> None:
        """Let notices under way be delivered."""
        if self._sender is not None:
            self._sender.close()
