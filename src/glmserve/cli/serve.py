"""`glmserve serve`: settings in, a running server out.  What the server does is in glmserve.server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glmserve.cli.options import with_flags_of
from glmserve.config import EngineConfig, ServerConfig, load_serve_settings, misspelled_variables


@with_flags_of(EngineConfig, ServerConfig, without=("model",))
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder, or [bold]demo[/bold], a small ChatGLM that writes Chinese poems (the default), or [bold]demo-en[/bold].",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with settings, such as `max_num_seqs: 64`.", show_default=False),
    ] = None,
    **flags: Any,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM.

    [bold]Examples[/bold]

    glmserve serve demo                      [dim]the built-in model: Chinese poems[/dim]

    glmserve serve demo-en                   [dim]a small English model, fetched once (93 MB)[/dim]

    glmserve serve /models/chatglm-6b        [dim]your own ChatGLM-6B folder[/dim]

    glmserve serve /models/chatglm-6b --port 9000 --api-key secret

    Then ask it something:

    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": \\[{"role": "user", "content": "Hello"}]}'

    Each option can also be a variable (--max-num-seqs is GLMSERVE_MAX_NUM_SEQS) or a line of a YAML file (max-num-seqs: 64).
    The command line wins over variables, variables win over the file.
    """
    engine_config, server_config = load_serve_settings({"model": model, **flags}, config)
    for line in misspelled_variables():
        print(f"glmserve: {line}", file=sys.stderr)
    from glmserve.server.run import serve as run_server  # here, since fastapi would slow down every other command

    run_server(engine_config, server_config)
