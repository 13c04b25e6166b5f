"""`glmserve monitor`: what do servers do, live, as lines, or as alerts.  The watching is in glmserve.tools.monitor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glmserve.cli.options import with_flags_of
from glmserve.tools.monitor.settings import MonitorConfig, load_monitor_settings


@with_flags_of(MonitorConfig)
def monitor(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL", help="Servers to watch. Nothing: http://localhost:8000.", show_default=False),
    ] = None,
    **flags: Any,
) -> None:
    """Watch one or several servers in the terminal: requests, speed, latency, where the device's time goes, slow requests and why.

    [bold]Examples[/bold]

    glmserve monitor                                 [dim]the server on this machine[/dim]

    glmserve monitor gpu1:8000 gpu2:8000             [dim]several; vLLM's servers too, as far as they report[/dim]

    glmserve monitor --once                          [dim]one line, for cron: time | GPU | Mem | QPS ...[/dim]

    glmserve monitor --log gpu.log --interval 30     [dim]such a line every 30 s[/dim]

    glmserve monitor --show alert-rules > alerts.yaml

    glmserve monitor --check-rules alerts.yaml       [dim]is the file right?[/dim]

    glmserve monitor --log - --alert-rules alerts.yaml
    """
    config = load_monitor_settings(flags)
    from glmserve.tools.monitor.run import monitor as run_monitor  # here, since httpx would slow down every other command

    run_monitor(urls or [], config)
