"""What a way of sampling adds to a decode step on this GPU, beside greedy.

    python benchmarks/sampling.py [--rows 1,8,32,64,256] [any flag of the engine, such as --quantization fp8]

ChatGLM-6B's shape, random weights, 256 tokens of context; the step is the engine's own CUDA graph and its sampler, one after the other.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from step_profile import fill, load

from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner.chip import seconds_of

CONTEXT, STEPS = 256, 10
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.95": {"temperature": 0.95},
    "top_p 0.7": {"temperature": 0.95, "top_p": 0.7},
    "top_p 0.7, top_k 50": {"temperature": 0.95, "top_p": 0.7, "top_k": 50},
    "top_p 0.7, bias": {"temperature": 0.95, "top_p": 0.7, "logit_bias": {9: 1.0}},
}


class _Request:
    """As much of a request as sampling asks for."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = SamplingParams(**params)
        self.num_output_tokens, self.seed, self.stop_token_ids = 9, 7, ()


@torch.inference_mode()
def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,32,64,256")
    own, rest = parser.parse_known_args()
    loaded, _, flags = load(rest)
    runner, graphs = loaded.runner, loaded.runner.graphs
    assert graphs is not None, "needs CUDA graphs, so a GPU"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {flags}; milliseconds a step\n")
    print("| rows | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for rows in map(int, own.rows.split(",")):
        fill(loaded, [CONTEXT] * rows)
        times = []
        for params in WAYS.values():
            requests: list[Any] = [_Request(params) for _ in range(rows)]

            def step(rows: int = rows, requests: list[Any] = requests) -> None:
                runner.sampler.sample(graphs.replay(graphs.size_for(rows))[:rows], requests)

            step()
            times.append(1000 * seconds_of(step, runner.device, STEPS))
        print(f"| {rows} | " + " | ".join(f"{time:.3f}" for time in times) + " |", flush=True)


if __name__ == "__main__":
    main()
