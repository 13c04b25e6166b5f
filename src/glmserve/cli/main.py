"""The entry point: the list of commands, and how an error looks to the person who caused it."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from glmserve.cli.bench import bench
from glmserve.cli.chat import chat
from glmserve.cli.deploy import deploy
from glmserve.cli.doctor import doctor
from glmserve.cli.monitor import monitor
from glmserve.cli.serve import serve
from glmserve.cli.slow import slow
from glmserve.config import wants_traces
from glmserve.protocol.errors import GlmserveError, SettingsError
from glmserve.version import __version__

app = typer.Typer(
    name="glmserve",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(chat)
app.command()(slow)
app.command()(monitor)
app.command()(doctor)
app.command()(deploy)
app.add_typer(bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"glmserve {__version__}")
        raise typer.Exit()


@app.callback()
def glmserve(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Serve ChatGLM-6B and its family over HTTP, with the GPU truly at work.

    [bold]Start here[/bold]

    glmserve serve demo      [dim]serve the built-in model, which writes Chinese poems, on port 8000[/dim]

    glmserve chat            [dim]talk to it from a second terminal[/dim]

    glmserve chat demo       [dim]or do both in one go[/dim]
    """


def main() -> None:
    """Run the command line and exit: 0 done, 1 it went wrong, 2 it was asked for wrongly, 130 Ctrl-C."""
    try:
        app()
    except SettingsError as error:
        _complain(str(error), 2)
    except GlmserveError as error:
        _complain(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _complain(_own_fault(error), 1)


def _complain(message: str, status: int) -> None:
    print(f"glmserve: {message}", file=sys.stderr)
    sys.exit(status)


def _own_fault(error: Exception) -> str:
    """An error nobody foresaw, on one screen."""
    if wants_traces():
        return "".join(traceback.format_exception(error))
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__}: {error}\n  at {where.filename}:{where.lineno}\n"
        "  This is a fault of glmserve, not yours. GLMSERVE_DEBUG=1 shows the whole trace; please report it."
    )
