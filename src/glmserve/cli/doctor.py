"""`glmserve doctor`: what is wrong with a service, a model folder or this machine.  The checks are in glmserve.tools.doctor."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from glmserve.cli.options import with_flags_of
from glmserve.protocol.errors import EngineUnavailableError, ModelLoadError
from glmserve.tools.doctor.settings import DoctorConfig, load_doctor_settings

HEALTHY, TROUBLE, NOT_EXAMINED = 0, 1, 2


@with_flags_of(DoctorConfig)
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|MODEL]",
            help="A running server, ours or another's, or a model folder. Nothing: the server at http://localhost:8000.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: verdict, figures and mend of each check.")] = False,
    list_checks: Annotated[bool, typer.Option("--list", help="List the checks and examine nothing.")] = False,
    **flags: Any,
) -> None:
    """Examine a running server, or a model folder before it is served: what is wrong, the figures, and how to mend it.

    [bold]Examples[/bold]

    glmserve doctor                          [dim]the server on this machine[/dim]

    glmserve doctor http://old-box:7860      [dim]a Gradio demo, an api.py, vLLM, any OpenAI-compatible server[/dim]

    glmserve doctor /models/chatglm-6b       [dim]a folder: is it whole, and does it fit on this machine?[/dim]

    glmserve doctor --checks pulses,cancel   [dim]some checks only; --list names them[/dim]

    A server gets up to 155 small requests, five long ones and 3 s of steady load, in up to a minute; --quick is shorter.
    Exit status: 0 healthy, 1 something to mend, 2 it could not be examined.
    """
    from glmserve.tools.doctor import report  # here, since httpx and NVML would slow down every other command
    from glmserve.tools.doctor.examine import examine

    if list_checks:
        report.show_list(Console(highlight=False))
        return
    config = load_doctor_settings(flags)
    notes = Console(stderr=True, highlight=False)
    try:
        with notes.status("Looking ...") as status:
            examination = asyncio.run(examine(target, config, status.update, announce=lambda words: notes.print(words, markup=False)))
    except (EngineUnavailableError, ModelLoadError) as error:
        notes.print(f"glmserve: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(NOT_EXAMINED) from None
    if json:
        sys.stdout.buffer.write(report.as_json(examination) + b"\n")
    else:
        report.show(examination, Console(highlight=False))
    raise typer.Exit(HEALTHY if examination.is_healthy else TROUBLE)
