"""`glmserve monitor`, from settings to page, lines or answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from importlib.resources import files

import httpx
from rich.console import Console
from rich.table import Table

from glmserve.observe.alert_file import load_alert_rules
from glmserve.observe.alert_rules import UNREACHABLE, AlertRules
from glmserve.observe.alerts import span
from glmserve.observe.signals import SIGNALS, Unit, show
from glmserve.protocol.errors import EngineUnavailableError, SettingsError
from glmserve.tools.monitor.lines import line_writer, look_at, write_lines
from glmserve.tools.monitor.rule_watch import RuleWatch
from glmserve.tools.monitor.settings import LOG_SECONDS, ONCE_SECONDS, PAGE_SECONDS, MonitorConfig, ReadyMade, server_urls
from glmserve.tools.monitor.watched_server import WINDOW_SECONDS, WatchedServer

READY_MADE: dict[ReadyMade, str] = {
    "alert-rules": "alert-rules.yaml",
    "prometheus-rules": "prometheus-rules.yml",
    "grafana-dashboard": "grafana-dashboard.json",
}
ANSWER_SECONDS = 10.0  # longest wait for a server's answer


def monitor(urls: Sequence[str], config: MonitorConfig) -> None:
    """Do what the settings say.  Raises SettingsError, and EngineUnavailableError where --once reaches not every server."""
    if config.show is not None:
        print(ready_made(config.show), end="")
    elif config.check_rules is not None:
        _check_rules(load_alert_rules(config.check_rules), urls)
    elif config.once or config.log is not None:
        _set_up_log()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_lines(_watched(urls, config), config))
    else:
        _page(urls, config)


def ready_made(name: ReadyMade) -> str:
    """The text of a file that ships with this package."""
    return files("glmserve.observe").joinpath("ready_made", READY_MADE[name]).read_text(encoding="utf-8")


def _watched(urls: Sequence[str], config: MonitorConfig) -> list[WatchedServer]:
    rules = load_alert_rules(config.alert_rules) if config.alert_rules is not None else None
    seconds = max(WINDOW_SECONDS, config.interval or LOG_SECONDS, rules.longest_window if rules else 0.0)
    return [WatchedServer(url, time.monotonic, seconds, config.slow_over) for url in server_urls(urls)]


def _rule_watch(servers: Sequence[WatchedServer], config: MonitorConfig) -> RuleWatch | None:
    return RuleWatch(load_alert_rules(config.alert_rules), servers, time.monotonic) if config.alert_rules is not None else None


def _client(config: MonitorConfig) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return httpx.AsyncClient(headers=headers, timeout=ANSWER_SECONDS)


def _set_up_log() -> None:
    """Notices and failed actions go to stderr, the lines to stdout or their file."""
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("glmserve").setLevel(logging.INFO)


async def _lines(servers: Sequence[WatchedServer], config: MonitorConfig) -> None:
    rules = _rule_watch(servers, config)
    write = line_writer(config.log or "-")
    interval = config.interval or (ONCE_SECONDS if config.once else LOG_SECONDS)
    try:
        async with _client(config) as http:
            rounds, judge = 1 if config.once else None, rules.judge if rules is not None else list
            await write_lines(servers, http, write, interval, rules.interval if rules is not None else interval, rounds, judge)
    finally:
        if rules is not None:
            rules.close()
    if config.once and (away := [server.url for server in servers if not server.reachable]):
        raise EngineUnavailableError(f"no metrics from {', '.join(away)}: is the server running, and is that its port?")


def _page(urls: Sequence[str], config: MonitorConfig) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):  # textual draws on stderr
        raise SettingsError("the page needs a terminal: --once or --log - print lines instead.")
    from glmserve.tools.monitor.page import MonitorPage  # here, since textual takes a while to load and lines do without

    logging.getLogger("glmserve").addHandler(logging.NullHandler())  # a line on stderr would tear the page
    logging.getLogger("glmserve").propagate = False
    servers = _watched(urls, config)
    rules = _rule_watch(servers, config)
    try:
        MonitorPage(servers, _client(config), config.interval or PAGE_SECONDS, config.slow_over, rules).run()
    finally:
        if rules is not None:
            rules.close()


def _check_rules(rules: AlertRules, urls: Sequence[str]) -> None:
    """The rules as a table; with servers, what each reads there now."""
    servers = [WatchedServer(url, time.monotonic) for url in server_urls(urls)] if urls else []
    if servers:
        asyncio.run(_look_twice(servers))
    table = Table(title=f"{len(rules.rules)} alert rules, all of them usable", title_justify="left")
    for column in ("rule", "fires when", "for", "severity", "actions", *(server.url for server in servers)):
        table.add_column(column, overflow="fold")
    for rule in rules.rules:
        unit = SIGNALS[rule.signal].unit if rule.signal in SIGNALS else Unit.COUNT
        side = "above" if rule.above is not None else "below"
        condition = "it does not answer" if rule.signal == UNREACHABLE else f"{rule.signal} {side} {show(rule.threshold, unit)}"
        actions = ", ".join(("log", *rules.actions_of(rule)))
        now = [_reads(rule.signal, unit, server) for server in servers]
        table.add_row(rule.name, condition, span(rule.hold) if rule.hold else "at once", rule.severity, actions, *now)
    Console(highlight=False).print(table)


async def _look_twice(servers: Sequence[WatchedServer]) -> None:
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as http:
        await look_at(servers, http)
        await asyncio.sleep(2.0)
        await look_at(servers, http)


def _reads(signal: str, unit: Unit, server: WatchedServer) -> str:
    if not server.reachable:
        return str(server.state)
    if signal in server.unreported():
        return "not reported"
    return "answers" if signal == UNREACHABLE else show(server.values()[signal], unit)
