"""Runs workloads on an LLM in this process and sets each beside its floor."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from glmserve.llm import LLM
from glmserve.models.floor import Chip, Workload, floor_of
from glmserve.models.spec import ModelSpec
from glmserve.offline_bench.utilization import Utilization
from glmserve.protocol.errors import SettingsError
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.protocol.stats import DeviceSeconds

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run_workload(llm: LLM, workload: Workload, chip: Chip) -> dict[str, Any]:
    """Figures of one workload: greedy, the end token ignored, the best of its repeats, each with prompts of its own."""
    device = torch.device(llm.engine.ready.device)
    runs = [_timed(llm, workload, seed, device) for seed in range(workload.repeats)]
    best, idle, nvml_percent = min(runs, key=lambda run: run[0])
    number_bytes, kv_bytes = (getattr(torch, dtype).itemsize for dtype in (llm.engine.ready.dtype, llm.engine.ready.kv_cache_dtype))
    floor = floor_of(workload, llm.spec, chip, max_num_seqs=llm.config.max_num_seqs, weight_bytes=number_bytes, kv_bytes=kv_bytes)
    return {
        "name": workload.name,
        "num_prompts": workload.num_prompts,
        "input_len": workload.input_len,
        "output_len": workload.output_len,
        "out_tok_s": workload.num_prompts * workload.output_len / best,
        "in_tok_s": workload.num_prompts * workload.input_len / best,
        "seconds": [seconds for seconds, _, _ in runs],
        "floor_seconds": floor.seconds,
        "floor_share": floor.seconds / best,
        "mbu": floor.num_bytes / best / chip.bytes_per_second,
        "mfu": floor.num_flops / best / chip.flops_per_second,
        "idle": idle,
        "nvml_percent": nvml_percent,
    }


def _timed(llm: LLM, workload: Workload, seed: int, device: torch.device) -> tuple[float, float, float | None]:
    """Seconds of one run, its `idle_share`, and NVML's percent."""
    spent_before = msgspec.structs.replace(llm.engine.stats().gpu_time_seconds)
    with Utilization(device) as utilization:
        seconds = time_once(llm, workload, seed)
    return seconds, idle_share(spent_before, llm.engine.stats().gpu_time_seconds), utilization.mean


def idle_share(before: DeviceSeconds, after: DeviceSeconds) -> float:
    """Of the device's time between the two, while there was work: what it spent waiting for the host, or for K/V blocks."""
    grown = {name: value - getattr(before, name) for name, value in msgspec.structs.asdict(after).items()}
    waited = grown["idle_scheduling"] + grown["idle_kv_full"]
    worked = grown["prefill"] + grown["decode"] + grown["sampling"]
    return waited / (waited + worked) if worked else 0.0


def time_once(llm: LLM, workload: Workload, seed: int) -> float:
    """Seconds from handing in the prompts to the last token."""
    ids = [random_prompt(llm.spec, f"{llm.config.seed} {seed} {index}", workload.input_len) for index in range(workload.num_prompts)]
    params = SamplingParams(temperature=0.0, max_tokens=workload.output_len, ignore_eos=True)
    started = time.perf_counter()
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    if short := [result for result in results if len(result.outputs[0].token_ids) != workload.output_len]:
        raise SettingsError(
            f"{len(short)} answers stopped before {workload.output_len} tokens: prompt and answer must fit in {llm.engine.max_model_len}."
        )
    return seconds


def random_prompt(spec: ModelSpec, seed: str, length: int) -> list[int]:
    """Random ids, none of them special; a ChatGLM-6B prompt ends with [gMASK] <sop>."""
    suffix = [spec.gmask_token_id, spec.bos_token_id] if spec.attention == "prefix" else []
    special = [token_id for token_id in (*suffix, spec.mask_token_id, spec.pad_token_id, *spec.eos_token_ids) if token_id is not None]
    high = min([60000, spec.vocab_size, *(token_id for token_id in special if token_id > spec.vocab_size // 2)])
    low = min(1000, high // 2)
    return [*random.Random(seed).choices(range(low, high), k=length - len(suffix)), *(id_ for id_ in suffix if id_ is not None)]


def read_workloads(path: Path, only: str | None) -> list[Workload]:
    """The `offline` list of a workloads file.  Raises SettingsError."""
    try:
        listed = [Workload(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["offline"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{path} is no workloads file ({error}). It looks like\n"
            '  {"offline": [{"name": "bs8", "num_prompts": 8, "input_len": 128, "output_len": 256}]}'
        ) from error
    wanted = only.split(",") if only else [workload.name for workload in listed]
    if strangers := set(wanted) - {workload.name for workload in listed}:
        raise SettingsError(f"{path} has no workload {', '.join(sorted(strangers))}; it has {', '.join(one.name for one in listed)}.")
    return [workload for workload in listed if workload.name in wanted]


def heading(llm: LLM, chip: Chip) -> Iterator[str]:
    """Where and on what this runs."""
    ready = llm.engine.ready
    loaded = ready.load_seconds.get("total", sum(ready.load_seconds.values()))
    yield f"{ready.model} in {ready.dtype} on {chip.name}, torch {torch.__version__}, loaded in {loaded:.1f} s"
    yield f"weights {ready.weights_bytes / 1e9:.2f} GB; {ready.num_kv_tokens:,} K/V tokens fit; {ready.max_num_seqs} requests at a time"
    kind = " in fp8" if ready.quantization == "fp8" else ""
    yield f"measured here: copy {chip.bytes_per_second / 1e12:.3g} TB/s, matrix product{kind} {chip.flops_per_second / 1e12:.3g} TFLOP/s"


HEAD = "| workload | out tok/s | in tok/s | seconds | share of floor | MBU | MFU | idle | NVML |\n|---|---|---|---|---|---|---|---|---|"


def markdown_row(row: dict[str, Any]) -> str:
    """One line of the table under HEAD."""
    nvml = "-" if row["nvml_percent"] is None else f"{row['nvml_percent']:.0f}%"
    shape = f"{row['num_prompts']} x {row['input_len']}+{row['output_len']}"
    return (
        f"| {row['name']} ({shape}) | {row['out_tok_s']:,.0f} | {row['in_tok_s']:,.0f} "
        f"| {_best_first(row['seconds'])} | {row['floor_share']:.0%} | {row['mbu']:.0%} | {row['mfu']:.0%} | {row['idle']:.1%} | {nvml} |"
    )


def _best_first(seconds: Iterable[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in sorted(seconds))
