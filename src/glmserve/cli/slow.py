"""`glmserve slow`: which requests took long, and why.  Reading and showing them is in glmserve.tools.slow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glmserve.cli.options import with_flags_of
from glmserve.tools.slow.settings import SlowConfig, load_slow_settings

DEFAULT_SOURCE = "http://localhost:8000"


@with_flags_of(SlowConfig, without=("json_output",))
def slow(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A server's URL, its log file, or - for standard input.", show_default=True),
    ] = DEFAULT_SOURCE,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    **flags: Any,
) -> None:
    """List the last requests that took long, each with the reason.

    [bold]Examples[/bold]

    glmserve slow                                   [dim]of the server on this machine[/dim]

    glmserve slow http://gpu-box:8000 --over 500ms

    glmserve slow /var/log/glmserve.log --last 50

    journalctl -u glmserve -o cat | glmserve slow -

    A running server keeps its last 1,000 requests; its log, which is what it writes to standard error, keeps all.
    """
    config = load_slow_settings({**flags, "json_output": json_output})
    from glmserve.tools.slow.report import show_slow  # here, since httpx and rich's tables would slow down every other command

    show_slow(source, config)
