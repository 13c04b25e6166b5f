"""`glmserve chat`: a conversation in the terminal, or with a pipe.  The talking itself is in conversation.py."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Annotated, Any

import typer
from rich.console import Console

from glmserve.cli.conversation import Conversation
from glmserve.cli.options import with_flags_of
from glmserve.cli.private_server import private_server
from glmserve.config import ChatConfig, load_chat_settings
from glmserve.protocol.errors import GlmserveError
from glmserve.tools.targets import as_url

HELP = """  /new    forget the conversation and begin a new one
  /exit   leave (Ctrl-D does too)
  /help   this list
  Ctrl-C stops an answer."""

with contextlib.suppress(ImportError):  # arrow keys and history at the prompt, where Python has them
    import readline  # noqa: F401

notes = Console(stderr=True, highlight=False)  # what is not an answer goes to stderr, so that a pipe gets answers alone


@with_flags_of(ChatConfig)
def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|URL]",
            help="Model folder, [bold]demo[/bold] or [bold]demo-en[/bold]: served while you chat. Nothing: the server at --url.",
            show_default=False,
        ),
    ] = None,
    **flags: Any,
) -> None:
    """Talk to a model in the terminal.

    [bold]Examples[/bold]

    glmserve chat                       [dim]with the server on this machine[/dim]

    glmserve chat http://gpu-box:8000   [dim]with a server elsewhere[/dim]

    glmserve chat demo                  [dim]without a server: starts one and ends it[/dim]

    echo "以春日为题写一首七言绝句" | glmserve chat demo      [dim]each line is a turn, stdout gets the answers[/dim]

    /new begins a new conversation, /exit leaves, Ctrl-C stops an answer.
    """
    settings = load_chat_settings(flags)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a private server is ended too
    with ExitStack() as stack:
        url = as_url(target) if target else as_url(settings.url) or f"http://{settings.url}"
        if url is None:
            assert target is not None
            with notes.status(f"Loading {target} ..."):
                url = stack.enter_context(private_server(target, settings.start_timeout))
        conversation = stack.enter_context(closing(Conversation(url, settings)))
        if sys.stdin.isatty():
            notes.print(f"Talking to [bold]{conversation.model}[/bold] at {url}. /help lists the commands.")
            _talk(conversation)
        else:
            _answer_lines(conversation)


def _talk(conversation: Conversation) -> None:
    """Turn after turn until /exit or Ctrl-D; an error ends a turn, not the conversation."""
    while True:
        try:
            line = input("\nyou> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            notes.print("\n/exit or Ctrl-D leaves.")
            continue
        if line == "/exit":
            return
        if not _obey(conversation, line):
            _answer_at_terminal(conversation, line)


def _obey(conversation: Conversation, line: str) -> bool:
    """Do what a command says.  False where the line is something to send."""
    if line == "/new":
        conversation.start_again()
        notes.print("A new conversation.")
    elif line == "/help":
        notes.print(HELP, markup=False)
    elif line.startswith("/") and " " not in line:
        notes.print(f"There is no command {line}. The commands are\n{HELP}", markup=False)
    else:
        return not line
    return True


def _answer_at_terminal(conversation: Conversation, line: str) -> None:
    pieces = conversation.ask(line)
    try:
        with closing(pieces):  # closing it tells the server to stop, at a Ctrl-C too
            _print_answer(pieces)
    except KeyboardInterrupt:
        notes.print("\n(stopped)")
    except GlmserveError as error:
        notes.print(f"\n{error}", markup=False)


def _answer_lines(conversation: Conversation) -> None:
    """Each line of a pipe is a turn."""
    for line in sys.stdin:
        if line.strip() == "/exit":
            return
        if not _obey(conversation, line.strip()):
            _print_answer(conversation.ask(line.strip()))


def _print_answer(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
