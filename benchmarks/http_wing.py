"""The HTTP wing alone: how many tokens and requests a second one front-end process carries, and how late it makes a token.

    python benchmarks/http_wing.py [--only paced] [--num-workers 1]

Behind the whole server (uvicorn, routes, admission, detokenizer, metrics, request log, ZeroMQ) stands the shipped fake engine in its
own process, which gives every running request one token a step and takes no time to find it.  Text is made of real pieces by the
ChatGLM tokenizer of the tests.  The load is `glmserve bench serve`, lengths drawn from half to one and a half times the mean so that
streams do not end together.

paced       a step takes 16 ms, as a large batch does on a GPU; requests come at random moments (Poisson), as many as keep nearly that
            many streams open.  A gap at the client should be the engine's own step, which is counted in the run from its metrics
            (16 ms and what it takes to hand tokens over): what the 99th percentile of gaps has beyond it is added by the wing, and by
            whoever competes for its core.  The first token takes the engine itself between one step and two, since a request waits
            for the next step: what TTFT p99 has beyond two steps is added.
saturating  closed loop, steps take no time, so the wing is what limits.  Tokens that come together travel together.
short       closed loop, answers of one token: what a request costs.

Beside the rate by the clock stands the rate for each second of CPU that the front-end process took (/proc/PID/stat), which hardly
depends on who shares the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import Served, where_and_when

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tokenizer"
SAYS = "你好! 我是人工智能助手, 很高兴见到你. How can I help you today?"
TOKEN_IDS = "10:700"  # plain pieces of the fixture's vocabulary


COLUMNS = (
    "setting", "tokens/s", "requests/s", "engine's step ms", "gap p50, p99 ms", "added to a gap, p99 ms", "TTFT p50, p99 ms",
    "added to TTFT, p99 ms", "server CPU", "tokens per CPU s", "requests per CPU s", "client CPU",
)  # fmt: skip
RATE_SHARE = 0.95  # of the requests that would fill all streams: a queue at the engine is not what is measured


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    kind: str
    clients: int
    step_seconds: float
    output_len: int
    num_prompts: int
    input_len: int = 128


SETTINGS = [
    *(Setting("paced", clients, 0.016, 256, 5 * clients) for clients in (32, 128, 256)),
    *(Setting("saturating", clients, 0.0, 256, 10 * clients) for clients in (1, 32, 256)),
    Setting("short", 32, 0.0, 1, 3000),
    Setting("short", 256, 0.0, 1, 5000),
]


def main() -> None:
    """Each setting on a server of its own, a line as soon as it is known."""
    options = parse_options()
    print(f"in 128 / out 256 (short: out 1), {options.num_workers} client process(es); {where_and_when()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(FIXTURE / "ice_text.model", folder)
        config = json.loads((FIXTURE / "config.json").read_text()) | {"max_sequence_length": 2048}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        for setting in SETTINGS:
            if setting.kind in options.only.split(","):
                print(measure(setting, folder, options.num_workers), flush=True)


def measure(setting: Setting, folder: str, num_workers: int) -> str:
    """A line of Markdown."""
    with Served([sys.executable, __file__, "--serve", folder, "--step-seconds", str(setting.step_seconds)]) as server:
        rate = RATE_SHARE * setting.clients / (setting.output_len * setting.step_seconds) if setting.step_seconds else "inf"
        flags = [
            "--max-concurrency", setting.clients, "--request-rate", rate, "--num-workers", min(num_workers, setting.clients),
            "--token-ids", TOKEN_IDS, "--random-input-len", setting.input_len, "--ignore-eos", "--random-output-len", setting.output_len,
            "--random-range-ratio", 0.5 if setting.output_len > 1 else 0,
        ]  # fmt: skip
        bench(server, ["--num-prompts", 2 * setting.clients, "--seed", 1, *flags])  # warms up whatever warms up
        cpu_before, engine_before = server.cpu_seconds(), engine_counters(server)
        run = bench(server, ["--num-prompts", setting.num_prompts, "--seed", 2, *flags])
        run["server_cpu_seconds"] = server.cpu_seconds() - cpu_before
        steps, idle_seconds, seconds = (after - before for after, before in zip(engine_counters(server), engine_before, strict=True))
        run["step_ms"] = (seconds - idle_seconds) / steps * 1000
        return line(setting, run)


def bench(server: Served, flags: list[Any]) -> dict[str, Any]:
    return server.bench(*map(str, flags))


def engine_counters(server: Served) -> tuple[float, float, float]:
    """Steps, seconds without work, and now."""
    idle = sum(server.metric("glmserve:gpu_time_seconds_total", f'"{cause}"') for cause in ("idle_no_work", "idle_http", "idle_tokenizing"))
    return server.metric("glmserve:engine_steps_total"), idle, time.monotonic()


def line(setting: Setting, run: dict[str, Any]) -> str:
    step, cpu_seconds = run["step_ms"], run["server_cpu_seconds"]
    gaps = f"{run['p50_itl_ms']:.2f}, {run['p99_itl_ms']:.2f}" if run["p50_itl_ms"] is not None else "-"
    added = (f"{run['p99_itl_ms'] - step:.2f}", f"{run['p99_ttft_ms'] - 2 * step:.2f}") if setting.step_seconds else ("-", "-")
    pace = f", {setting.step_seconds * 1000:.0f} ms steps" if setting.step_seconds else ""
    cells = [
        f"{setting.kind}, {setting.clients} clients{pace}",
        f"{run['output_throughput']:,.0f}",
        f"{run['request_throughput']:,.1f}",
        f"{step:.2f}",
        gaps,
        added[0],
        f"{run['p50_ttft_ms']:.2f}, {run['p99_ttft_ms']:.2f}",
        added[1],
        f"{cpu_seconds / run['duration']:.0%}",
        f"{run['total_output_tokens'] / cpu_seconds:,.0f}",
        f"{run['completed'] / cpu_seconds:,.0f}",
        f"{run['client_busy']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def serve(folder: str, step_seconds: float, port: int) -> None:
    """The server with the fake engine, in the process that `Served` starts."""
    from glmserve.config import EngineConfig, ServerConfig
    from glmserve.engine.fake import FakeOptions
    from glmserve.models.catalog import read_spec
    from glmserve.server.run import serve as run_server
    from glmserve.text.tokenizer import load_tokenizer

    says = load_tokenizer(Path(folder), read_spec(Path(folder))).encode(SAYS, add_special_tokens=False)
    options = FakeOptions(alphabet=tuple(says), step_seconds=step_seconds)
    config = ServerConfig(host="127.0.0.1", port=port, shutdown_timeout=1)
    run_server(EngineConfig(model=folder), config, engine_module="glmserve.engine.fake", engine_args=options.as_arguments())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="paced,saturating,short")
    parser.add_argument("--num-workers", type=int, default=1, help="client processes")
    for name in ("--serve", "--step-seconds", "--host", "--port"):  # of the process that serves; not for people
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parse_options()
    if given.serve:
        serve(given.serve, float(given.step_seconds), int(given.port))
    else:
        main()
