"""Slow requests as a table for people, or as JSON for programs."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from glmserve.observe.request_log import ExplainedLine, explain
from glmserve.observe.request_record import RequestLine
from glmserve.tools.slow.settings import SlowConfig
from glmserve.tools.slow.source import Found, find_slow

WIDE = 130  # columns: room for ids too; --json has them always


def show_slow(source: str, config: SlowConfig) -> None:
    """Print the slow requests of `source`.  Raises SettingsError and SourceError."""
    found = find_slow(source, config)
    if config.json_output:
        print(msgspec.json.encode({"requests": [explained(line) for line in found.lines], "refused": found.refusals}).decode())
        return
    console = Console()
    if found.lines:
        console.print(table_of([explained(line) for line in found.lines], with_ids=console.width >= WIDE))
    else:
        console.print(f"No request took {config.over:g} s or longer." if config.over else "No request has ended so far.")
    console.print(*refused(found), sep="\n", end="\n" if found.refusals else "", markup=False)


def explained(line: RequestLine) -> ExplainedLine:
    """With the reason; one that the log or the server gave is made anew, so that old logs have today's words."""
    return explain(line)


def table_of(lines: list[ExplainedLine], with_ids: bool) -> Table:
    """One row a request."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ended (UTC)", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("1st token", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("why", ratio=1)
    if with_ids:
        table.add_column("request", no_wrap=True, style="dim")
    for line in lines:
        table.add_row(
            line.timestamp[5:19].replace("T", " "),
            _seconds(line.e2e_seconds),
            _seconds(line.first_token_seconds),
            f"{line.prompt_tokens:,}+{line.completion_tokens:,}",
            line.why if line.status == 200 else f"{line.why} ({line.status})",
            *([line.request_id] if with_ids else []),
        )
    return table


def refused(found: Found) -> list[str]:
    """How many requests never got so far."""
    return [f"Refused meanwhile: {count:,} x {kind}." for kind, count in found.refusals.most_common()]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
