"""Matrix products of one SmolLM2 step on a CPU: torch's default against oneDNN with weights packed once.

    OMP_NUM_THREADS=1 python benchmarks/cpu_linear.py

Each product reads a weight of its own, as a model does, so caches help no more than they do there.  What is printed is
milliseconds for all layers and the head together, median of the repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

NUM_LAYERS = 30
LAYER = [(960, 576), (576, 576), (3072, 576), (576, 1536)]  # qkv, o, gate and up, down: [out_features, in_features]
HEAD = (49152, 576)
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def default(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """F.linear, weight [out, in]."""
    return F.linear(x, weight)


def transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ W with W kept as [in, out]."""
    return torch.mm(x, weight)


def packed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """oneDNN's product with a weight in oneDNN's own layout."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def layouts(weights: list[torch.Tensor]) -> dict[str, tuple[Product, list[torch.Tensor]]]:
    """Each way with its weights."""
    ways: dict[str, tuple[Product, list[torch.Tensor]]] = {
        "F.linear": (default, weights),
        "x @ W, W as [in, out]": (transposed, [weight.t().contiguous() for weight in weights]),
    }
    for rows in (1, 4, 8, 256):
        ways[f"oneDNN, packed for {rows} rows"] = (packed, [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights])
    return ways


def milliseconds(product: Product, inputs: list[torch.Tensor], weights: list[torch.Tensor], repetitions: int) -> float:
    """One pass over all weights, median."""
    times = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        for x, weight in zip(inputs, weights, strict=True):
            product(x, weight)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) * 1e3  # the first warms up


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [shape for _ in range(NUM_LAYERS) for shape in LAYER] + [HEAD]
    ways = layouts([torch.randn(shape) for shape in shapes])
    print("| ms a step, by rows | " + " | ".join(map(str, options.rows)) + " |")
    print("|---" * (len(options.rows) + 1) + "|")
    for name, (product, weights) in ways.items():
        cells = []
        for rows in options.rows:
            inputs = [torch.randn(rows, in_features) for _, in_features in shapes]
            cells.append(f"{milliseconds(product, inputs, weights, options.repetitions if rows < 64 else 2):.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
