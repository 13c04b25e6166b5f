"""The second screen: every metric family that a server reports, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from glmserve.observe.readings import Family, Labels, Window
from glmserve.tools.monitor.watched_server import WINDOW_SECONDS, WatchedServer

COLUMNS = ("metric", "value", "a second", "labels, and a histogram's last seconds")
HIDDEN_LABELS = frozenset({"model_name", "engine"})  # the same on every line
Row = tuple[str, str, str, str]


class AllMetrics(Screen[None]):
    """A table that follows the server; the line below it explains the chosen metric."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,m", "dismiss", "Back"), Binding("q", "app.quit", "Quit")]
    CSS = """
    #rows { height: 1fr; }
    #meaning { height: auto; max-height: 3; padding: 0 1; background: $panel; }
    """

    def __init__(self, server: WatchedServer, interval: float) -> None:
        super().__init__()
        self._server = server
        self._interval = interval
        self._helps: list[str] = []

    def compose(self) -> ComposeResult:
        """The table and its explanation."""
        yield DataTable(id="rows", cursor_type="row", zebra_stripes=True)
        yield Static(id="meaning")
        yield Footer()

    def on_mount(self) -> None:
        """Fill it, and again at each interval."""
        self.query_one("#rows", DataTable).add_columns(*COLUMNS)
        self.follow()
        self.set_interval(self._interval, self.follow)

    def follow(self) -> None:
        """Write what the server says now; the cursor stays where it is."""
        table = self.query_one("#rows", DataTable)
        rows = list(rows_of(self._server))
        self._helps = [help_text for help_text, _ in rows]
        cursor, scroll = table.cursor_row, table.scroll_y
        table.clear()
        for _, row in rows:
            table.add_row(*row)
        table.move_cursor(row=min(cursor, len(rows) - 1), animate=False, scroll=False)
        table.scroll_to(y=scroll, animate=False)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Say what the metric means."""
        if event.cursor_row < len(self._helps):
            self.query_one("#meaning", Static).update(self._helps[event.cursor_row])


def rows_of(server: WatchedServer) -> Iterator[tuple[str, Row]]:
    """(help, cells) of each series; a histogram is one line with its count, mean and quantiles of the last seconds."""
    last = server.history.last
    if last is None:
        return
    window = server.history.window(WINDOW_SECONDS) or Window(last, last)
    for name, family in last.families.items():
        if name.endswith("_created"):
            continue
        yield from ((family.help, row) for row in (_histogram(name, window) if family.kind == "histogram" else _series(family, window)))


def _series(family: Family, window: Window) -> Iterator[Row]:
    for sample in family.sample_names:
        if sample.endswith("_created"):
            continue
        grown = window.increases(sample) if family.kind == "counter" else {}
        for labels, value in sorted(window.after.series(sample).items(), key=lambda item: sorted(item[0])):
            rate = f"{grown[labels] / window.seconds:,.4g}" if labels in grown and window.seconds else ""
            yield sample, f"{value:,.6g}", rate, _words(labels)


def _histogram(name: str, window: Window) -> Iterator[Row]:
    for labels, count in window.after.series(name + "_count").items():
        p50, p99 = window.quantile(name, 0.5), window.quantile(name, 0.99)
        mean = window.mean_observation(name)
        now = "" if mean is None or p50 is None or p99 is None else f"mean {mean:.3g}, p50 {p50:.3g}, p99 {p99:.3g}"
        rate = (window.rate(name + "_count") or 0.0) if window.seconds else 0.0
        yield name, f"{count:,.0f}", f"{rate:,.4g}", " ".join(filter(None, (_words(labels), now)))


def _words(labels: Labels) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels) if key not in HIDDEN_LABELS)
