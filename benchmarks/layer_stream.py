"""What a layer in one launch saves of a decode step on this GPU: both ways in one process, one after the other.

    python benchmarks/layer_stream.py [--rows 2,8,16,32,64] [any flag of the engine, such as --quantization fp8 --kv-cache-dtype fp8]

ChatGLM-6B's shape, random weights, 256 tokens of context; the step is the engine's own CUDA graph and greedy sampling.
"""

from __future__ import annotations

import argparse
from unittest import mock

import torch
from step_profile import Greedy, fill, load

from glmserve.engine.loading import LoadedEngine
from glmserve.models.chatglm import model
from glmserve.runner.chip import seconds_of
from glmserve.runner.cuda_graph import DecodeGraphs, GraphMemory

CONTEXT, STEPS = 256, 30


@torch.inference_mode()
def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="2,8,16,32,64")
    own, rest = parser.parse_known_args()
    loaded, _, flags = load(rest, max_num_seqs="64")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {flags}; milliseconds a step\n")
    print("| rows | six kernels a layer | one | |\n|---|---|---|---|")
    for rows in map(int, own.rows.split(",")):
        with mock.patch.object(model, "serves_layer_stream", lambda *_: False):
            apart = milliseconds(loaded, rows)
        together = milliseconds(loaded, rows)
        print(f"| {rows} | {apart:.3f} | {together:.3f} | {together / apart - 1:+.1%} |", flush=True)


def milliseconds(loaded: LoadedEngine, rows: int) -> float:
    """A step of so many rows, captured anew."""
    runner = loaded.runner
    assert runner.graphs is not None, "needs CUDA graphs, so a GPU"
    graphs = DecodeGraphs(runner._decode, runner.inputs.max_num_seqs, GraphMemory.new())
    fill(loaded, [CONTEXT] * rows)

    def step() -> None:
        runner.sampler.sample(graphs.replay(graphs.size_for(rows))[:rows], [Greedy()] * rows)  # type: ignore[list-item]

    step()
    return 1000 * seconds_of(step, runner.device, STEPS)


if __name__ == "__main__":
    main()
