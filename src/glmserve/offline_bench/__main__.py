"""The process: `python -m glmserve.offline_bench throughput|latency SETTINGS`, with checked settings as JSON, as the command line sends."""

from __future__ import annotations

import json
import statistics
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from glmserve.config import EngineConfig, wants_traces
from glmserve.llm import LLM
from glmserve.models.floor import Chip, Workload
from glmserve.offline_bench.run import DTYPES, HEAD, heading, markdown_row, read_workloads, run_workload, time_once
from glmserve.protocol.errors import GlmserveError, SettingsError
from glmserve.runner.chip import measure_chip, product_dtype
from glmserve.tools.bench.settings import LatencyConfig, ThroughputConfig


def throughput(engine: EngineConfig, run: ThroughputConfig) -> None:
    """Workload after workload, a line each as soon as it is known."""
    if run.only and run.workloads is None:
        raise SettingsError("--only names workloads of a file: give it with --workloads.")
    if run.workloads is not None:
        workloads = read_workloads(run.workloads, run.only)
    else:
        workloads = [Workload("random", run.num_prompts, run.input_len, run.output_len, run.num_iters)]
    llm, chip = _start(engine)
    print(HEAD, flush=True)
    rows = []
    for workload in workloads:
        rows.append(run_workload(llm, workload, chip))
        print(markdown_row(rows[-1]), flush=True)
    _write(run.output_json, {"chip": _facts(chip), "rows": rows})


def latency(engine: EngineConfig, run: LatencyConfig) -> None:
    """One batch again and again."""
    workload = Workload("random", run.batch_size, run.input_len, run.output_len)
    llm, _ = _start(engine)
    for number in range(run.num_iters_warmup):
        time_once(llm, workload, -1 - number)
    seconds = sorted(time_once(llm, workload, number) for number in range(run.num_iters))
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    percentiles = {str(percent): cuts[percent - 1] for percent in (10, 25, 50, 75, 90, 99)}
    print(f"{run.batch_size} x {run.input_len}+{run.output_len}: mean {statistics.fmean(seconds):.4f} s")
    print("".join(f"p{percent:<3} {value:.4f} s\n" for percent, value in percentiles.items()), end="")
    _write(run.output_json, {"avg_latency": statistics.fmean(seconds), "latencies": seconds, "percentiles": percentiles})


def _start(engine: EngineConfig) -> tuple[LLM, Chip]:
    """The model first: its K/V pool is sized by the memory that is free."""
    settings = engine.model_dump(exclude={"model", "enable_prefix_caching"})
    llm = LLM(engine.model, **settings, enable_prefix_caching=False)  # what is measured is computing, not remembering
    ready = llm.engine.ready
    device = torch.device(ready.device)
    chip = measure_chip(device, product_dtype(ready.quantization, DTYPES[ready.dtype], device))
    print("\n".join(heading(llm, chip)), flush=True)
    return llm, chip


def _facts(chip: Chip) -> dict[str, Any]:
    return {"name": chip.name, "bytes_per_second": chip.bytes_per_second, "flops_per_second": chip.flops_per_second}


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """0 done, 1 it went wrong."""
    what, settings = arguments[0], json.loads(arguments[1])
    engine = EngineConfig(**settings["engine"])
    try:
        if what == "throughput":
            throughput(engine, ThroughputConfig(**settings["run"]))
        else:
            latency(engine, LatencyConfig(**settings["run"]))
    except GlmserveError as error:
        print("".join(traceback.format_exception(error)) if wants_traces() else f"glmserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
