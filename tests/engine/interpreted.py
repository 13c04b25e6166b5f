"""A few recorded cases through the CUDA path on Triton's interpreter: `python -m tests.engine.interpreted FOLDER fused|plain`,
with TRITON_INTERPRET=1.

What makes the path the GPU's: the kernels, K/V of one head and block lying together, ids that the host reads one step late, and, with
fused kernels, prompts padded to the shapes of CUDA graphs.  Only CUDA's events, graphs and pinned memory are pretended.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from glmserve.engine.core import EngineCore
from glmserve.kernels import activation, decode_rows, norm, paged_decode, rotary_store
from glmserve.layers import attention
from glmserve.layers.attention import LayerCache
from glmserve.runner import prompt_graphs
from glmserve.runner.prompt_graphs import PromptGraphs, PromptShape
from tests.engine.golden import LogitRecorder, generate, make_engine, read_cases, recorded_logits

CASES = {"small": ["gmask_n17", "bos_twice_first_wins", "eos_stop"], "small_ptuning_plain": ["gmask_n1", "gmask_n6"]}
NUM_TOKENS = 3


def main(folder: Path, kernels: str) -> None:
    cases = [case for case in read_cases(folder) if case.name in CASES[folder.name]]
    cases = [replace(case, greedy_tokens=case.greedy_tokens[:NUM_TOKENS]) for case in cases]
    assert len(cases) == len(CASES[folder.name])
    engine = make_engine(folder, device="cpu", dtype="float32", num_kv_blocks=40, max_model_len=64, enforce_eager=True)
    pretend_gpu(engine, plain=kernels == "plain")
    graphs = pretend_graphs(engine) if kernels == "fused" else None
    recorder = LogitRecorder(engine)
    wrong = [(attention, "paged_attention_torch"), (rotary_store, f"rotate_and_store_{'triton' if kernels == 'plain' else 'torch'}")]
    with ExitStack() as stack:
        for module, name in wrong:
            stack.enter_context(mock.patch.object(module, name, side_effect=AssertionError(f"{name} ran")))
        tokens = generate(engine, cases)
    assert tokens == {case.name: case.greedy_tokens for case in cases}, tokens
    if graphs is not None:  # soft tokens lie before a prompt's own, which is then never whole
        assert {shape.whole for shape in graphs.replayed} == {engine.spec.num_soft_tokens == 0}
    for case in cases:
        ids, expected = recorded_logits(case)
        logits = np.stack(recorder.logits[case.name][: len(case.greedy_tokens)])
        error = np.abs(np.take_along_axis(logits, ids[: len(logits)], 1) - expected[: len(logits)]).max()
        assert error <= 3e-4, (case.name, error)


def pretend_gpu(engine: EngineCore, plain: bool) -> None:
    for module in (activation, decode_rows, norm, rotary_store, attention):
        module.use_triton = lambda tensor: not plain
    attention.on_gpu = lambda tensor: True
    paged_decode.num_key_splits = lambda num_seqs, num_kv_heads: 2  # as many as fill a chip would take minutes here
    pool, spec = engine.runner.pool, engine.spec
    blocks = torch.zeros(spec.num_layers, 2, pool.num_blocks, spec.num_kv_heads, pool.block_size, spec.head_dim)
    views = blocks.transpose(3, 4)
    for layer, cache in enumerate(pool.caches):  # soft tokens are in it
        views[layer, 0].copy_(cache.key)
        views[layer, 1].copy_(cache.value)
    pool.caches = [LayerCache(views[layer, 0], views[layer, 1]) for layer in range(spec.num_layers)]
    pool.blocks = pool._raw = blocks
    engine.runner.on_gpu = True
    torch.cuda.Event = mock.Mock


class PretendedGraphs(PromptGraphs):
    """Runs each step where a GPU would replay it."""

    replayed: list[PromptShape]

    def prepare(self, shape: PromptShape) -> None:
        pass

    def replay(self, shape: PromptShape) -> torch.Tensor:
        self.replayed.append(shape)
        return self._run(shape)


def pretend_graphs(engine: EngineCore) -> PretendedGraphs:
    prompt_graphs._TOKENS, prompt_graphs._SEQUENCES = (24, 72), (2, 4)  # the interpreter is slow
    runner = engine.runner
    runner.prompt_graphs = PretendedGraphs(
        runner._prompt, runner.inputs.max_num_seqs, runner.inputs.packed.shape[1], runner.axes, runner.device, (0, 0)
    )
    runner.prompt_graphs.replayed = []
    return runner.prompt_graphs


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
