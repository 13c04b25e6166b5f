"""Alert rules judged from outside, for one or several servers: also where a server does not answer any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from glmserve.observe.alert_actions import AlertSender
from glmserve.observe.alert_rules import AlertRules
from glmserve.observe.alerts import Alerts, Notice
from glmserve.tools.monitor.watched_server import WatchedServer

logger = logging.getLogger(__name__)


class RuleWatch:
    """`judge` is called after each look at the servers and gives the notices that it sent."""

    def __init__(self, rules: AlertRules, servers: Sequence[WatchedServer], clock: Callable[[], float]) -> None:
        self.interval = rules.interval  # seconds between two judgements, as the file asks for
        self._servers = servers
        self._clock = clock
        self._sender = AlertSender(rules)
        self._alerts = {server.url: Alerts(rules, server.url) for server in servers}
        self._told_idle: set[str] = set()

    def judge(self) -> list[Notice]:
        """Send what is to be told now."""
        notices = []
        for server in self._servers:
            alerts = self._alerts[server.url]
            notices += alerts.look(server.history, self._clock(), server.reachable)
            if server.reachable and server.url not in self._told_idle and server.history.last is not None:
                self._told_idle.add(server.url)
                for line in alerts.unwatchable(server.history.last):
                    logger.warning("%s", line)
        for notice in notices:
            self._sender.send(notice)
        return notices

    def firing(self, server: WatchedServer) -> list[str]:
        """Names of the rules that fire for a server."""
        return [rule.name for rule in self._alerts[server.url].firing]

    def close(self) -> None:
        """Let notices under way be delivered."""
        self._sender.close()
