"""The live page of `glmserve monitor`: one server whole, several as a table with the chosen one whole beneath it.

It looks at the servers at each interval and draws what came of it; a server that is away is drawn as away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar

import httpx
from rich.console import RenderableType
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Static

from glmserve.tools.monitor import panels
from glmserve.tools.monitor.all_metrics import AllMetrics
from glmserve.tools.monitor.drawing import SharesOverTime
from glmserve.tools.monitor.lines import look_at
from glmserve.tools.monitor.rule_watch import RuleWatch
from glmserve.tools.monitor.watched_server import WatchedServer

COLUMNS = ("", "server", "run", "wait", "done", "tokens", "first p90", "busy", "MBU", "K/V")
COLUMN_SIGNALS = (
    "requests_running",
    "requests_waiting",
    "requests_per_second",
    "tokens_per_second",
    "ttft_p90",
    "gpu_busy",
    "mbu",
    "kv_usage",
)
TALL = 30  # lines from which there is room for the course of time


class MonitorPage(App[None]):
    """`look` asks all servers and draws; a timer calls it every `interval` seconds."""

    TITLE = "glmserve monitor"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #top { height: 1; padding: 0 1; background: $panel; }
    #servers { height: auto; max-height: 8; }
    #status { height: auto; max-height: 2; padding: 0 1; }
    .row { height: auto; }
    .panel { width: 1fr; height: auto; border: round $primary-darken-1; border-title-color: $text; padding: 0 1; }
    #requests, #speed { height: 5; }
    #latency, #device { height: 8; }
    #course { height: 10; }
    #slow { height: 1fr; min-height: 3; width: 100%; overflow-y: auto; scrollbar-size-vertical: 1; }
    .hidden { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("m", "all_metrics", "All metrics"),
        Binding("space", "pause", "Pause"),
        Binding("n", "next", "Next server"),
    ]

    def __init__(
        self,
        servers: Sequence[WatchedServer],
        http: httpx.AsyncClient,
        interval: float,
        slow_over: float = 2.0,
        rules: RuleWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._servers = list(servers)
        self._http = http
        self._interval = interval
        self._slow_over = slow_over
        self._rules = rules
        self._clock = clock
        self._trails = [panels.Trails() for _ in servers]
        self._chosen = 0
        self._paused = False
        self._looking = False

    def compose(self) -> ComposeResult:
        """The panels, top to bottom."""
        yield Static(id="top")
        yield DataTable(id="servers", cursor_type="row", zebra_stripes=True, classes="" if len(self._servers) > 1 else "hidden")
        yield Static(id="status")
        with Horizontal(classes="row"):
            yield _panel("requests", "Requests")
            yield _panel("speed", "Speed")
        with Horizontal(classes="row"):
            yield _panel("latency", "Latency")
            yield _panel("device", "Device")
        yield _panel("course", "Device over time")
        with Vertical(id="slow", classes="panel"):
            yield Static(id="slow-requests")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one("#slow").border_title = f"Slow requests, over {self._slow_over:g} s"
        table = self.query_one("#servers", DataTable)
        table.add_columns(*COLUMNS)
        for server in self._servers:
            table.add_row(*("" for _ in COLUMNS), key=server.url)
        self._draw()
        self.set_interval(self._interval, self._tick)
        self.run_worker(self._tick())

    async def on_unmount(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def _tick(self) -> None:
        if not self._paused and not self._looking:  # a slow server delays the next look, it does not pile them up
            await self.look()

    async def look(self) -> None:
        """Ask every server now and draw."""
        self._looking = True
        try:
            await look_at(self._servers, self._http)
        finally:
            self._looking = False
        for server, trails in zip(self._servers, self._trails, strict=True):
            trails.add(server.values(), server.device_shares())
        if self._rules is not None:
            for notice in self._rules.judge():
                self.notify(notice.text, severity="error" if notice.status == "firing" else "information", timeout=15)
        self._draw()

    @property
    def chosen(self) -> WatchedServer:
        """The server that is shown whole."""
        return self._servers[self._chosen]

    def _draw(self) -> None:
        server, values, shares = self.chosen, self.chosen.values(), self.chosen.device_shares()
        trails = self._trails[self._chosen]
        wide = self.size.width // 2 - 4
        pictures: dict[str, RenderableType] = {
            "#top": self._top_line(),
            "#status": panels.status_line(server, self._clock(), self._rules.firing(server) if self._rules else ()),
            "#requests": panels.requests(values),
            "#speed": panels.speed(values, trails, wide),
            "#latency": panels.latency(values),
            "#device": panels.device(server, values, shares),
            "#course": SharesOverTime(trails.shares, 8),
            "#slow-requests": panels.slow(server, self._slow_over, self.size.width),
        }
        for name, picture in pictures.items():
            self.query_one(name, Static).update(picture)
        self._draw_servers()
        self.query_one("#course").set_class(self.size.height < TALL or not any(trails.shares), "hidden")

    def _draw_servers(self) -> None:
        table = self.query_one("#servers", DataTable)
        for row, server in enumerate(self._servers):
            values = server.values()
            name = server.url.removeprefix("http://")
            cells = [panels.state_mark(server), Text(name, "bold" if row == self._chosen else "")]
            cells += [Text(panels.shown(values, name), justify="right") for name in COLUMN_SIGNALS]
            for column, cell in enumerate(cells):
                table.update_cell_at((row, column), cell, update_width=True)  # type: ignore[arg-type]

    def _top_line(self) -> Text:
        line = Text.assemble((self.TITLE, "bold"), (f"  {datetime.now():%H:%M:%S}", "dim"))
        return line.append("  paused", "bold yellow") if self._paused else line

    def on_resize(self) -> None:
        """Bars are as wide as the terminal."""
        self.call_after_refresh(self._draw)  # the first one comes before the table has rows

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The cursor chooses the server."""
        if event.data_table.id != "servers":
            return
        self._chosen = event.cursor_row
        self._draw()

    def action_next(self) -> None:
        """Choose the next server."""
        self.query_one("#servers", DataTable).move_cursor(row=(self._chosen + 1) % len(self._servers))

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self._paused = not self._paused
        self._draw()

    def action_all_metrics(self) -> None:
        """Everything the chosen server reports."""
        self.push_screen(AllMetrics(self.chosen, self._interval))


def _panel(name: str, title: str) -> Static:
    panel = Static(id=name, classes="panel")
    panel.border_title = title
    return panel
