"""What stands in each panel of the page: from a server's figures to text and tables.  Draws nothing itself, keeps no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glmserve.observe.signals import IDLE, LATENCIES, QUANTILES, SIGNALS, Unit, show
from glmserve.tools.monitor.drawing import StackedBar, color_of, in_order, share_bar, trail_line
from glmserve.tools.monitor.watched_server import State, WatchedServer

Values = Mapping[str, float | None]

STATE_COLORS = {State.READY: "green", State.NOT_READY: "yellow", State.UNREACHABLE: "red", State.NO_METRICS: "red", State.UNKNOWN: "dim"}
LATENCY_WORDS = {"ttft": "first token", "itl": "next token", "e2e": "whole request", "queue_time": "waiting"}
TRAIL = 600  # looks that are kept for drawing
BAR = 12
NARROW = 96  # columns from which there is room for more than the necessary


@dataclass
class Trails:
    """What was seen at each look, oldest first, for the drawings."""

    tokens_out: list[float | None] = field(default_factory=list)
    tokens_in: list[float | None] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)

    def add(self, values: Values, shares: dict[str, float]) -> None:
        """One more look."""
        for trail, seen in ((self.tokens_out, values["tokens_per_second"]), (self.tokens_in, values["prompt_tokens_per_second"])):
            trail.append(seen)
            del trail[:-TRAIL]
        self.shares.append(shares)
        del self.shares[:-TRAIL]


def shown(values: Values, name: str) -> str:
    """A signal's value for people.  Of a count that is an average, more than one decimal says nothing."""
    value, unit = values[name], SIGNALS[name].unit
    return show(round(value, 1) if value is not None and unit is Unit.COUNT else value, unit)


def state_mark(server: WatchedServer) -> Text:
    """One character for the state, by form and by colour."""
    mark = {State.READY: "●", State.NOT_READY: "◐", State.UNKNOWN: "○"}.get(server.state, "✕")
    return Text(mark, STATE_COLORS[server.state])


def status_line(server: WatchedServer, now: float, alerts: Sequence[str] = ()) -> Text:
    """State, address, model, and what is wrong."""
    color = STATE_COLORS[server.state]
    line = Text.assemble(state_mark(server), " ", (server.url, "bold"))
    for word in filter(None, (server.model, server.engine)):
        line.append(f"  {word}", "dim")
    line.append(f"  {server.state}", color)
    if server.state not in (State.READY, State.UNKNOWN):
        line.append(f" for {now - server.since:.0f} s")
    if server.reason:
        line.append(f": {server.reason}")
    if server.num_restarts:
        line.append(f"  engine restarted {server.num_restarts}x", "yellow")
    if alerts:
        line.append(f"  ALERT: {', '.join(alerts)}", "bold red")
    return line


def requests(values: Values) -> RenderableType:
    """How many, and how they fare."""
    table = _plain_table(4)
    rows = [
        ("running", "requests_running", "waiting", "requests_waiting"),
        ("done", "requests_per_second", "failed", "error_rate"),
        ("refused", "rejected_per_second", "preempted", "preemptions_per_second"),
    ]
    for left, left_name, right, right_name in rows:
        table.add_row(left, _value(values, left_name), right, _value(values, right_name))
    return table


def speed(values: Values, trails: Trails, width: int) -> RenderableType:
    """Tokens, and the memory that they fill."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    room = max(4, width - 25)
    table.add_row("tokens out", _value(values, "tokens_per_second"), trail_line(trails.tokens_out, room))
    table.add_row("tokens in", _value(values, "prompt_tokens_per_second"), trail_line(trails.tokens_in, room, "#3b82f6"))
    usage = values["kv_usage"]
    table.add_row("K/V used", _value(values, "kv_usage"), share_bar(usage, room, _alarm_color(usage)) if usage is not None else "")
    return table


def latency(values: Values) -> RenderableType:
    """Quantiles of the last seconds."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(style="dim", no_wrap=True)
    for _ in QUANTILES:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(f"p{percent}", "dim") for percent in QUANTILES))
    for name in LATENCIES:
        table.add_row(LATENCY_WORDS.get(name, name), *(_value(values, f"{name}_p{percent}") for percent in QUANTILES))
    return table


def device(server: WatchedServer, values: Values, shares: dict[str, float]) -> RenderableType:
    """Where the device's time goes, what it reaches of its limits, and what NVML says."""
    parts: list[RenderableType] = [StackedBar(shares), legend(shares)] if shares else [_no_shares(server)]
    named = {"MBU": "mbu", "MFU": "mfu", "busy": "gpu_busy"}
    if (values["gpu_launch_bound"] or 0.0) >= 0.05:
        named["launch"] = "gpu_launch_bound"
    gap = " " if len(named) > 3 else "  "  # a narrow terminal has 36 columns for it
    limits = Text(gap).join(Text.assemble((f"{title} ", "dim"), _value(values, name)) for title, name in named.items())
    parts.append(limits)
    parts.append(_nvml(values) if values["nvml_utilization"] is not None else Text("no GPU figures from NVML", "dim"))
    return Group(*parts)


def legend(shares: dict[str, float]) -> RenderableType:
    """Each activity that takes time, with its colour."""
    told = [(name, share) for name, share in in_order(shares) if share >= 0.0005]
    return Columns(
        [Text.assemble(("■ ", color_of(name)), f"{_activity(name)} ", (f"{share:.0%}", "bold")) for name, share in told], padding=(0, 2)
    )


def slow(server: WatchedServer, slow_over: float, width: int) -> RenderableType:
    """The slow requests, newest first, each with its reason."""
    if server.slow is None:
        return Text(f"This server does not tell its slow requests: {server.slow_reason}." if server.reachable else "", "dim")
    if not server.slow:
        return Text(f"None took more than {slow_over:g} s.", "dim")
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for entry in server.slow:
        tokens = [f"{entry.get('completion_tokens', '-')} tokens"] if width >= NARROW else []
        table.add_row(_clock(entry.get("timestamp")), _seconds(entry.get("e2e_seconds")), *tokens, _why(entry))
    return table


def _why(entry: dict[str, Any]) -> Text:
    return Text(str(entry.get("why") or entry.get("cause") or entry.get("request_id", "")))


def _clock(timestamp: Any) -> str:
    """The time of day here of an ISO time."""
    try:
        return f"{datetime.fromisoformat(str(timestamp)).astimezone():%H:%M:%S}"
    except ValueError:
        return ""


def _seconds(value: Any) -> str:
    return f"{value:.1f} s" if isinstance(value, int | float) else "-"


def _activity(name: str) -> str:
    return name.removeprefix(IDLE).replace("_", " ") if name.startswith(IDLE) else name


def _no_shares(server: WatchedServer) -> Text:
    last = server.history.last
    if not server.reachable or last is None:
        return Text("")
    if "gpu_time_seconds" in last.families:
        return Text("looking ...", "dim")  # a share needs two looks
    return Text(f"{server.engine or 'This server'} does not report where the device's time goes.", "dim")


def _nvml(values: Values) -> Text:
    line = Text.assemble(("NVML ", "dim"), _value(values, "nvml_utilization"), (" mem ", "dim"), _value(values, "nvml_memory"))
    line.append_text(Text.assemble((" power ", "dim"), _value(values, "nvml_power"), " ", _value(values, "nvml_temperature")))
    return line.append(" THROTTLED", "bold red") if values["nvml_throttled"] else line


def _value(values: Values, name: str) -> Text:
    """A signal's value, red where it should not be."""
    bad = {"error_rate": 0.01, "rejected_per_second": 0.0, "preemptions_per_second": 0.0, "kv_usage": 0.95}
    value = values[name]
    style = "dim" if value is None else "bold red" if name in bad and value > bad[name] else "bold"
    return Text(shown(values, name), style)


def _alarm_color(share: float) -> str:
    return "#ef4444" if share > 0.95 else "#eab308" if share > 0.85 else "#22c55e"


def _plain_table(num_columns: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for index in range(num_columns):
        table.add_column(style="dim" if index % 2 == 0 else "", justify="left" if index % 2 == 0 else "right")
    return table
