"""When a rule fires and when it is over: a state a rule, and the notices that come of it.

Plain logic on a clock that is handed in.  What a notice sets off is in `observe.alert_actions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from glmserve.observe.alert_rules import UNREACHABLE, AlertRule, AlertRules
from glmserve.observe.readings import History, Readings
from glmserve.observe.signals import SIGNALS, Unit, show, unreported


class Status(StrEnum):
    """What a notice says."""

    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True)
class Notice:
    """One thing to tell people.  `time` is seconds since 1970, `seconds` how long the alert has been firing."""

    status: Status
    rule: AlertRule
    server: str
    value: float | None
    time: float
    seconds: float
    repeated: bool = False

    @property
    def text(self) -> str:
        """One line that says it all."""
        head = f"{self.status.upper()} [{self.rule.severity}] {self.rule.name} at {self.server}"
        if self.rule.signal == UNREACHABLE:
            what = "it does not answer" if self.status is Status.FIRING else "it answers again"
        else:
            side = "above" if self.rule.above is not None else "below"
            now = "is not reported" if self.value is None else f"is {self._show(self.value)}"
            what = f"{self.rule.signal} {now}"
            what += f", {side} {self._show(self.rule.threshold)}" if self.status is Status.FIRING else " again"
        since = (
            f", for {span(self.seconds)}" if self.repeated else f", after {span(self.seconds)}" if self.status is Status.RESOLVED else ""
        )
        return f"{head}: {what}{since}" + (f". {self.rule.message}" if self.rule.message and self.status is Status.FIRING else "")

    def fields(self) -> dict[str, str | float | None]:
        """What webhooks and commands get: the placeholders of `observe.alert_rules` and their values."""
        return {
            "status": str(self.status),
            "rule": self.rule.name,
            "severity": self.rule.severity,
            "signal": self.rule.signal,
            "value": self.value,
            "threshold": self.rule.threshold,
            "server": self.server,
            "message": self.rule.message or "",
            "text": self.text,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(timespec="seconds"),
        }

    def _show(self, value: float) -> str:
        return show(value, SIGNALS[self.rule.signal].unit if self.rule.signal in SIGNALS else Unit.COUNT)


@dataclass
class _Alert:
    """Where one rule stands.  Moments are of the clock that `look` is given."""

    rule: AlertRule
    bad_since: float | None = None
    firing_since: float | None = None
    good_since: float | None = None
    last_told: float = 0.0

    def judge(self, value: float | None, at: float) -> tuple[Status, float, bool] | None:
        """(status, seconds of firing, repeated) of what is to be told now, if anything."""
        if self.firing_since is not None:
            return self._while_firing(self.firing_since, value, at)
        if value is None or not self.rule.exceeds(value):
            self.bad_since = None
            return None
        self.bad_since = at if self.bad_since is None else self.bad_since
        if at - self.bad_since < self.rule.hold:
            return None
        self.firing_since, self.good_since, self.last_told = at, None, at
        return Status.FIRING, 0.0, False

    def _while_firing(self, since: float, value: float | None, at: float) -> tuple[Status, float, bool] | None:
        """No value is a good one: nobody waits where nobody asks."""
        if value is None or self.rule.recovered(value):
            self.good_since = at if self.good_since is None else self.good_since
            if at - self.good_since >= self.rule.resolve_after:
                self.bad_since = self.firing_since = None
                return Status.RESOLVED, at - since, False
            return None
        self.good_since = None
        if self.rule.repeat and at - self.last_told >= self.rule.repeat:
            self.last_told = at
            return Status.FIRING, at - since, True
        return None


class Alerts:
    """The rules of a file for one server."""

    def __init__(self, rules: AlertRules, server: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._alerts = [_Alert(rule) for rule in rules.rules]
        self._server = server
        self._wall_clock = wall_clock

    def look(self, history: History, at: float, reachable: bool = True) -> list[Notice]:
        """What is to be told now.  `at` is a moment of the history's clock.

        While a server cannot be reached its metrics are unknown: alerts about them stay as they are.
        """
        notices = []
        for alert in self._alerts:
            if not reachable and alert.rule.signal != UNREACHABLE:
                continue
            value = self._value(alert.rule, history, reachable)
            if (told := alert.judge(value, at)) is not None:
                status, seconds, repeated = told
                notices.append(Notice(status, alert.rule, self._server, value, self._wall_clock(), seconds, repeated))
        return notices

    def unwatchable(self, readings: Readings) -> list[str]:
        """A line for each rule whose signal this server does not report, so that it would keep silent."""
        missing = unreported(readings)
        rules = [alert.rule for alert in self._alerts if alert.rule.signal in missing]
        return [f"alert rule {rule.name!r} is idle: {self._server} does not report {rule.signal}" for rule in rules]

    @property
    def firing(self) -> list[AlertRule]:
        """The rules that fire now."""
        return [alert.rule for alert in self._alerts if alert.firing_since is not None]

    @staticmethod
    def _value(rule: AlertRule, history: History, reachable: bool) -> float | None:
        if rule.signal == UNREACHABLE:
            return 0.0 if reachable else 1.0
        return SIGNALS[rule.signal].read(history, rule.over)


def span(seconds: float) -> str:
    """A time for people: "90 s", "15 min", "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
