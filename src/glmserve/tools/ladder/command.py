"""`glmserve bench ladder`, from settings to files: climbs, shows how far it is, and leaves what is known, also after a Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from glmserve.protocol.errors import GlmserveError, SettingsError
from glmserve.tools.ladder.climb import Climb, StartServer
from glmserve.tools.ladder.html import html
from glmserve.tools.ladder.png import check_matplotlib, write_png
from glmserve.tools.ladder.results import Ladder, RungResult
from glmserve.tools.ladder.rungs import Rung
from glmserve.tools.ladder.settings import LadderConfig
from glmserve.tools.ladder.table import COLUMNS, cells, markdown, notes, summary

WIDE = 120  # columns of a terminal from which the article's figures have room beside ours


class NothingMeasuredError(GlmserveError):
    """A run in which no rung could be measured."""


def bench_ladder(model: str, config: LadderConfig, command: str, start_server: StartServer, console: Console | None = None) -> Ladder:
    """Climb, print the table and write the files of `config.output`.

    `command` is what the user typed, for the record.  Raises SettingsError for a file that could not be written, before any work, and
    NothingMeasuredError where no rung could be measured; a KeyboardInterrupt passes after what is known has been shown and written.
    """
    _check(config.paths)
    console = console or Console(highlight=False)
    ladder = Ladder.begin(model, config, command)
    try:
        with _ProgressDisplay(config, console) as display:
            Climb(ladder, config, start_server, display).run()
    finally:
        if ladder.measured:
            _show(ladder, console)
            for path in config.paths:
                _write(ladder, path)
                console.print(f"written: {path}", markup=False)
    if not ladder.measured:
        raise NothingMeasuredError("no rung could be measured; the reasons stand above")
    return ladder


def _check(paths: list[Path]) -> None:
    for path in paths:
        if not path.resolve().parent.is_dir():
            raise SettingsError(f"--output: there is no folder {path.resolve().parent}.")
    if any(path.suffix == ".png" for path in paths):
        check_matplotlib()


def _write(ladder: Ladder, path: Path) -> None:
    match path.suffix:
        case ".json":
            path.write_bytes(msgspec.json.format(msgspec.json.encode(ladder), indent=1) + b"\n")
        case ".html":
            path.write_text(html(ladder), encoding="utf-8")
        case ".md":
            path.write_text(markdown(ladder), encoding="utf-8")
        case ".png":
            write_png(ladder, path)


def _show(ladder: Ladder, console: Console) -> None:
    rows = [cells(row) for row in ladder.rows if row.figures is not None]
    fitting = len(COLUMNS) if console.width >= WIDE else len(COLUMNS) - 1
    shown = [at for at in range(fitting) if any(row[at].strip("-") for row in rows)]
    table = Table(title=f"{ladder.model} on {ladder.device or 'an unknown device'}", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for at in shown:
        table.add_column(COLUMNS[at], justify="right" if 0 < at < len(COLUMNS) - 1 else "left", no_wrap=at > 0)
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    console.print(table)
    for missing in (row for row in ladder.rows if row.figures is None):
        console.print(f"{missing.number} {missing.name}: {missing.missing}", markup=False)
    for line in (*summary(ladder), *notes(ladder)):
        console.print(line, markup=False)


class _ProgressDisplay:
    """A line for the rung that is being climbed, above it a line for each that is done.  Is the `Display` of a Climb."""

    def __init__(self, config: LadderConfig, console: Console) -> None:
        self._config = config
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=None, seen="")

    def __enter__(self) -> _ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def starting(self, rung: Rung) -> None:
        """A server is being started."""
        self._progress.reset(self._task, total=None, description=f"{rung.number} {rung.name}", seen="starting a server")

    def loading(self, rung: Rung, seconds: float, num_done: int) -> None:
        """It is under load."""
        share = max(seconds / self._config.duration, num_done / self._config.num_prompts)
        self._progress.update(self._task, total=1.0, completed=min(1.0, share), seen=f"{num_done:,} answers")

    def finished(self, row: RungResult) -> None:
        """What came of it, in a line."""
        if row.figures is None:
            self._progress.console.print(f"{row.number} {row.name}: {row.missing}", markup=False, highlight=False)
            return
        name, rate, mean, p99, *_ = cells(row)
        self._progress.console.print(f"{name}: {rate} requests/s, mean {mean}, p99 {p99}", markup=False, highlight=False)
