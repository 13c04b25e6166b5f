"""`glmserve bench serve`, from settings to table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from glmserve.protocol.errors import GlmserveError, SettingsError
from glmserve.tools.bench.facts import ask_facts
from glmserve.tools.bench.load import run_load
from glmserve.tools.bench.plan import make_plans
from glmserve.tools.bench.report import measure, remarks, result_file, tables
from glmserve.tools.bench.server_watch import ServerWatch
from glmserve.tools.bench.settings import ServeBenchConfig


class NoAnswerError(GlmserveError):
    """A run in which no request succeeded."""


def bench_serve(config: ServeBenchConfig, console: Console | None = None) -> dict[str, Any]:
    """Load the server, print what came of it, and give the figures, under vLLM's names.

    Raises EngineUnavailableError where the server cannot be reached or fails the first request, SettingsError for settings that do
    not fit it, NoAnswerError where every request failed.
    """
    console = console or Console(highlight=False)
    if config.save_result is not None and not config.save_result.resolve().parent.is_dir():  # not found out after the work
        raise SettingsError(f"--save-result: there is no folder {config.save_result.resolve().parent}.")
    facts = ask_facts(config)
    watch = ServerWatch(config.base_url, config.api_key)
    with _progress(config) as note:
        result = asyncio.run(run_load(make_plans(config, facts), note, watch))
    figures, server = measure(result, config), watch.figures()
    for table in tables(figures, server, config):
        console.print(table)
    for line in remarks(figures):
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    if config.save_result is not None:
        content = msgspec.json.encode(result_file(figures, result, server, config, facts.model))
        config.save_result.write_bytes(msgspec.json.format(content, indent=1))
    if not figures["completed"]:
        raise NoAnswerError("no request succeeded")
    return figures


@contextmanager
def _progress(config: ServeBenchConfig) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=config.disable_tqdm) as bar:
        task = bar.add_task("", total=config.num_prompts, seen="")
        yield lambda done, events: bar.update(task, completed=done, seen=f"{events:,} events")
