"""`glmserve bench`: how fast is a server, or the engine without one.  What is measured and how is in glmserve.tools.bench."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from glmserve.cli.options import with_flags_of
from glmserve.cli.private_server import private_server
from glmserve.config import EngineConfig
from glmserve.models.catalog import read_spec
from glmserve.models.demo import resolve_model
from glmserve.protocol.errors import SettingsError
from glmserve.tools.bench.settings import (
    LatencyConfig,
    ServeBenchConfig,
    ThroughputConfig,
    load_engine_bench_settings,
    load_serve_bench_settings,
)
from glmserve.tools.ladder.settings import LadderConfig, load_ladder_settings

bench = typer.Typer(help="Measure how fast a server, or the engine without one, answers.", no_args_is_help=True)
OFFLINE_MODULE = "glmserve.offline_bench"  # a process of its own, since this one never loads torch


@bench.command()
@with_flags_of(ServeBenchConfig)
def serve(
    more_limits: Annotated[
        list[str] | None, typer.Argument(hidden=True, metavar="LIMIT")
    ] = None,  # --goodput ttft:200 tpot:50, as vLLM writes it
    **flags: Any,
) -> None:
    """Load a running server as many clients would: tokens/s, and the times a user sees.

    [bold]Examples[/bold]

    glmserve bench serve --num-prompts 200 --max-concurrency 32 --random-input-len 128 --random-output-len 256 --ignore-eos

    glmserve bench serve --request-rate 10 --goodput ttft:200 tpot:50    [dim]10 requests a second at random moments[/dim]

    glmserve bench serve --backend chatglm --base-url http://old-box:8000    [dim]a ChatGLM-6B api.py[/dim]

    Any server that speaks OpenAI's protocol or ChatGLM-6B's own will do.
    """
    if more_limits:
        if not flags["goodput"]:
            raise SettingsError(f"{more_limits[0]!r} belongs to no flag; `glmserve bench serve --help` lists them.")
        flags["goodput"] = [*flags["goodput"], *more_limits]
    config = load_serve_bench_settings(flags)
    from glmserve.tools.bench.serve import bench_serve  # here, since httpx and uvloop would slow down every other command

    bench_serve(config)


@bench.command()
@with_flags_of(ThroughputConfig, EngineConfig)
def throughput(**flags: Any) -> None:
    """Tokens/s of the engine alone, all prompts handed in at once; beside it what the chip would allow.

    [bold]Example[/bold]

    glmserve bench throughput --model /models/chatglm-6b --num-prompts 256 --input-len 128 --output-len 256
    """
    _run_offline("throughput", flags, ThroughputConfig)


@bench.command()
@with_flags_of(LatencyConfig, EngineConfig)
def latency(**flags: Any) -> None:
    """Seconds that one batch takes from prompts to whole answers, in the engine alone.

    [bold]Example[/bold]

    glmserve bench latency --model /models/chatglm-6b --batch-size 1
    """
    _run_offline("latency", flags, LatencyConfig)


@bench.command()
@with_flags_of(LadderConfig, EngineConfig, without=("model", "batching", "enforce_eager", "kernels"))
def ladder(
    model: Annotated[
        str, typer.Argument(help="Model folder, [bold]demo[/bold] (built in, the default) or [bold]demo-en[/bold].", show_default=False)
    ] = "demo",
    **flags: Any,
) -> None:
    """What each way to serve a model brings on this machine: the same load, rung by rung, with a figure after each.

    Rung 0 answers one request at a time, 1 is an async API, 2 gathers windows of 50 ms, 3 batches continuously with paged K/V,
    4 adds CUDA graphs and fused kernels, 5 adds fp8.
    Each has a server of its own, started with the options given here and ended afterwards.

    [bold]Examples[/bold]

    glmserve bench ladder                              [dim]the built-in model, on a CPU too[/dim]

    glmserve bench ladder /models/chatglm-6b --concurrency 32 --output-len 128 --price-per-hour 1.2 --output ladder.html --output ladder.md
    """
    config, server_flags = load_ladder_settings(model, flags)
    read_spec(resolve_model(model))  # a folder that cannot be served is told once, not on every rung
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server is ended too

    def start_server(rung_flags: Sequence[str]) -> AbstractContextManager[str]:
        return private_server(model, config.start_timeout, [*server_flags, *rung_flags], keyless=True)

    from glmserve.tools.ladder.command import bench_ladder  # here, as above

    bench_ladder(model, config, shlex.join(["glmserve", *sys.argv[1:]]), start_server)


def _run_offline(what: str, flags: dict[str, Any], kind: type[ThroughputConfig] | type[LatencyConfig]) -> None:
    """This process becomes the one that measures; the settings were checked here and travel as JSON."""
    engine, run = load_engine_bench_settings(flags, kind)
    settings = {"engine": engine.model_dump(mode="json"), "run": run.model_dump(mode="json")}
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", OFFLINE_MODULE, what, json.dumps(settings)])
