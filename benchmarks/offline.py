"""The offline workloads on this machine's GPU, with random weights of ChatGLM-6B's real shape.

    python benchmarks/offline.py [--dtype bfloat16] [--only bs32,prefill] [--json FILE]

All prompts are handed in at once, greedy, the end token ignored.  Prints one line a workload: tokens a second and their share of the
floor, which is the larger of bytes and arithmetic that the workload cannot avoid (docs in benchmarks/README.md), over the copy and
matrix-product rates measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from glmserve import LLM, SamplingParams

CHATGLM_6B = {
    "model_type": "chatglm", "vocab_size": 130528, "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32,
    "inner_hidden_size": 16384, "layernorm_epsilon": 1e-5, "max_sequence_length": 2048, "bos_token_id": 130004, "eos_token_id": 130005,
    "mask_token_id": 130000, "gmask_token_id": 130001, "pad_token_id": 3, "position_encoding_2d": True, "torch_dtype": "float16",
}  # fmt: skip
LAYER_VALUES = 28 * (12 * 4096 * 4096)  # qkv 3, dense 1, mlp 4 + 4
HEAD_VALUES = 130528 * 4096
KV_VALUES = 2 * 28 * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    parser.add_argument("--enforce-eager", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CHATGLM_6B))
        llm = LLM(
            model=folder, device="cuda", dtype=arguments.dtype, load_format="dummy", skip_tokenizer_init=True,
            enforce_eager=arguments.enforce_eager, enable_prefix_caching=False,
        )  # fmt: skip
    ready = llm.engine.ready
    print(f"{ready.device_name}, torch {torch.__version__}, {ready.dtype}, start {time.monotonic() - started:.1f} s {ready.load_seconds}")
    print(f"K/V tokens {ready.num_kv_tokens}, weights {ready.weights_bytes / 1e9:.2f} GB", flush=True)
    chip = measure_chip(getattr(torch, arguments.dtype))
    print(f"this chip: copy {chip['bytes_a_second'] / 1e12:.2f} TB/s, matrix product {chip['flops_a_second'] / 1e12:.0f} TFLOP/s")
    rows = [run(llm, workload, chip) for workload in workloads(arguments.only)]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"chip": chip, "rows": rows}, indent=1))


def workloads(only: str) -> list[dict[str, Any]]:
    listed = json.loads((Path(__file__).parent / "workloads.json").read_text())["offline"]
    return [workload for workload in listed if not only or workload["name"] in only.split(",")]


def run(llm: LLM, workload: dict[str, Any], chip: dict[str, float]) -> dict[str, Any]:
    seconds = []
    for repeat in range(workload.get("repeats", 2)):
        prompts = [{"prompt_token_ids": prompt_ids(repeat * 10000 + i, workload["input_len"])} for i in range(workload["num_prompts"])]
        params = SamplingParams(temperature=0.0, max_tokens=workload["output_len"], ignore_eos=True)
        started = time.monotonic()
        results = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.monotonic() - started)
        assert all(len(result.outputs[0].token_ids) == workload["output_len"] for result in results)
    best = min(seconds)
    generated, read = (workload["num_prompts"] * workload[key] for key in ("output_len", "input_len"))
    floor = floor_seconds(workload, chip)
    row = {"name": workload["name"], "out_tok_s": generated / best, "in_tok_s": read / best, "seconds": seconds, "floor_seconds": floor}
    print(
        f"{row['name']:>10}: out {row['out_tok_s']:8.0f} tok/s, in {row['in_tok_s']:8.0f} tok/s, {best:6.2f} s, "
        f"{floor / best:5.0%} of the floor's speed  (runs: {', '.join(f'{value:.2f}' for value in seconds)})",
        flush=True,
    )
    return row


def prompt_ids(seed: int, length: int) -> list[int]:
    """Random ids ending with [gMASK] <sop>, as every ChatGLM-6B prompt does."""
    rng = random.Random(seed)
    return [*(rng.randrange(1000, 60000) for _ in range(length - 2)), CHATGLM_6B["gmask_token_id"], CHATGLM_6B["bos_token_id"]]  # type: ignore[list-item]


def floor_seconds(workload: dict[str, Any], chip: dict[str, float], bytes_a_value: int = 2) -> float:
    """Prefill arithmetic, plus for each decode step the larger of weights-read and arithmetic, plus the K/V of the mean context."""
    batch = min(workload["num_prompts"], 256)
    waves = workload["num_prompts"] / batch
    read, wrote = workload["input_len"], workload["output_len"]
    prefill = 2 * LAYER_VALUES * read * workload["num_prompts"] / chip["flops_a_second"]
    weights = (LAYER_VALUES + HEAD_VALUES) * bytes_a_value / chip["bytes_a_second"]
    arithmetic = 2 * (LAYER_VALUES + HEAD_VALUES) * batch / chip["flops_a_second"]
    keys = batch * (read + wrote / 2) * KV_VALUES * bytes_a_value / chip["bytes_a_second"]
    return prefill + waves * wrote * (max(weights, arithmetic) + keys)


def measure_chip(dtype: torch.dtype) -> dict[str, float]:
    """Bytes (read plus written) and matrix FLOPs a second."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    copy, product = _seconds(lambda: target.copy_(source)), _seconds(lambda: a @ b)
    return {"bytes_a_second": 2 * source.nbytes / copy, "flops_a_second": 2 * 8192**3 / product}


def _seconds(work: Any, repeats: int = 10) -> float:
    for _ in range(3):
        work()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000 / repeats


if __name__ == "__main__":
    main()
