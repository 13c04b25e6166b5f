"""Where the time of one decode step goes on this GPU, kernel by kernel, beside what each kind of kernel cannot avoid.

    python benchmarks/step_profile.py [--rows 1,32,256] [--context 256] [--long 8x1900] [any flag of the engine, such as --quantization fp8]

ChatGLM-6B's shape, random weights.  The step is the engine's own CUDA graph and its sampling, replayed over requests of one context
length, but for --long so many of another; times are the profiler's, per step.  A kind's floor is the bytes it must move (weights, keys
and values, or rows of numbers in and out) over the copy rate measured here, or its arithmetic over the measured rate of a matrix product
where that takes longer.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from glmserve.config import EngineConfig, load_serve_settings
from glmserve.engine.loading import LoadedEngine, load_engine
from glmserve.kernels.decode_rows import NUM_FIELDS, POSITION, SECOND_POSITION, SEQ_LEN, SLOT, TOKEN_ID
from glmserve.layers.linear import Linear
from glmserve.layers.quantized_linear import QuantizedLinear
from glmserve.models.floor import Chip, head_values, layer_values
from glmserve.protocol.errors import ModelLoadError
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner.chip import measure_chip, product_dtype, seconds_of

HERE = Path(__file__).resolve().parent
STEPS = 10
KINDS = {  # what a kernel's name holds -> kind, in this order
    "layer_stream": "matrix products",
    "_full_heads": "attention", "_grouped_heads": "attention", "_merge_splits": "attention, merging splits",
    "layer_norm": "LayerNorm", "_best_of": "greedy sampling", "_unpack_rows": "everything else",
    "gemm": "matrix products", "nvjet": "matrix products",
    "cutlass": "matrix products", "splitK": "matrix products", "_rows_kernel": "matrix products", "_row_kernel": "matrix products",
    "_row_packed": "matrix products", "gelu": "GELU", "_finish": "fp8 rows", "_dequantize": "dequantizing",
}  # fmt: skip


def main() -> None:
    """Print one table a batch size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1,32,256")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--long", default="0x0", help="how many of the requests have how many tokens instead, such as 8x1900")
    own, rest = parser.parse_known_args()
    num_long, long_context = map(int, own.long.split("x"))
    loaded, config, flags = load(rest)
    device = loaded.runner.device
    chip = measure_chip(device, product_dtype(config.quantization, torch.bfloat16, device))
    print(f"{chip.name}: copy {chip.bytes_per_second / 1e12:.2f} TB/s, matrix product {chip.flops_per_second / 1e12:.0f} TFLOP/s; {flags}")
    for rows in map(int, own.rows.split(",")):
        print(table(loaded, [long_context] * num_long + [own.context] * (rows - num_long), chip), flush=True)


def load(flags_given: list[str], max_num_seqs: str = "256") -> tuple[LoadedEngine, EngineConfig, dict[str, Any]]:
    """An engine of ChatGLM-6B's shape with random weights, changed by the flags given, and all its flags."""
    flags: dict[str, Any] = {"model": str(HERE / "chatglm-6b"), "load_format": "dummy", "dtype": "bfloat16", "device": "cuda"}
    flags["max_num_seqs"] = max_num_seqs
    flags |= {name.removeprefix("--").replace("-", "_"): value for name, value in zip(flags_given[::2], flags_given[1::2], strict=True)}
    config, _ = load_serve_settings(flags, environ={})
    try:
        return load_engine(config, lambda text: print(text, file=sys.stderr)), config, flags
    except ModelLoadError as error:
        sys.exit(str(error))


@torch.inference_mode()
def table(loaded: LoadedEngine, contexts: list[int], chip: Chip) -> str:
    """The Markdown table of one batch, a context length a request."""
    rows = len(contexts)
    fill(loaded, contexts)
    graphs = loaded.runner.graphs
    assert graphs is not None, "needs CUDA graphs, so a GPU"

    def step() -> None:
        loaded.runner.sampler.sample(graphs.replay(graphs.size_for(rows))[:rows], [Greedy()] * rows)  # type: ignore[list-item]

    milliseconds = 1000 * seconds_of(step, loaded.runner.device, STEPS)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiler.key_averages():
        if event.self_device_time_total:
            kind = next((kind for part, kind in KINDS.items() if part in event.key), "everything else")
            kinds[kind][0] += event.count / STEPS
            kinds[kind][1] += event.self_device_time_total / 1000 / STEPS
    floors = floor_by_kind(loaded, contexts, chip)
    lengths = " and ".join(f"{contexts.count(length)} rows of {length} tokens" for length in sorted(set(contexts)))
    lines = [f"\n**{lengths}: {milliseconds:.3f} ms a step**\n"]
    lines += ["| kernels | launches | ms | floor ms | share |", "|---|---|---|---|---|"]
    for kind, (count, spent) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        floor = floors.get(kind)
        lines.append(f"| {kind} | {count:.0f} | {spent:.3f} | " + (f"{floor:.3f} | {floor / spent:.0%} |" if floor else "| |"))
    spent = sum(spent for _, spent in kinds.values())
    lines.append(f"| sum of kernels | | {spent:.3f} | {sum(floors.values()):.3f} | {sum(floors.values()) / spent:.0%} |")
    return "\n".join(lines)


class Greedy:
    """As much of a request as greedy sampling asks for."""

    def __init__(self) -> None:
        self.params = SamplingParams(temperature=0.0)
        self.num_output_tokens = 9


def fill(loaded: LoadedEngine, contexts: list[int]) -> None:
    """A request for each context length, with blocks of their own, in the persistent batch; their K and V are random.

    How much power a card takes depends on the numbers, and at its limit its speed does.
    """
    inputs, block_size, rows = loaded.runner.inputs, loaded.runner.pool.block_size, len(contexts)
    packed = inputs.packed
    packed.zero_()
    packed[:rows, TOKEN_ID], packed[:rows, POSITION], packed[:rows, SECOND_POSITION] = 5, 100, 50
    next_block = 1
    for row, context in enumerate(contexts):
        blocks = -(-context // block_size)
        packed[row, NUM_FIELDS : NUM_FIELDS + blocks] = torch.arange(next_block, next_block + blocks, device=packed.device).int()
        next_block += blocks
        packed[row, SEQ_LEN], packed[row, SLOT] = context, (next_block - 1) * block_size + (context - 1) % block_size
    for one in loaded.runner.pool.blocks.flatten(0, 1):  # K or V of a layer
        for some in one[1:next_block].split(1024):
            some.copy_(torch.randn(some.shape, dtype=torch.bfloat16, device=some.device))


def floor_by_kind(loaded: LoadedEngine, contexts: list[int], chip: Chip) -> dict[str, float]:
    """Milliseconds that each kind of kernel cannot avoid."""
    spec, model = loaded.spec, loaded.runner.model
    matrices = {name: part.weight.nbytes for name, part in model.named_modules() if isinstance(part, Linear | QuantizedLinear)}
    if spec.knows_first_qkv:
        del matrices["layers.0.query_key_value"]  # looked up, not read
    weights = sum(matrices.values())
    rows = len(contexts)
    flops = 2 * rows * (layer_values(spec) + head_values(spec))
    cached = sum(contexts) * spec.kv_values_per_token * loaded.runner.pool.blocks.itemsize
    normed = rows * spec.hidden_size * 2 * 3 * (2 * spec.num_layers + 1)  # two rows in, one out
    seconds = {
        "matrix products": max(weights / chip.bytes_per_second, flops / chip.flops_per_second),
        "attention": cached / chip.bytes_per_second,
        "LayerNorm": normed / chip.bytes_per_second,
        "greedy sampling": rows * spec.vocab_size * 2 / chip.bytes_per_second,
    }
    return {kind: 1000 * value for kind, value in seconds.items()}


if __name__ == "__main__":
    main()
