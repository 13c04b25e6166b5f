"""Graphs that no step has needed yet are captured one by one, over inputs that point at the null block alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glmserve.kernels.decode_rows import SEQ_LEN, SLOT
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner.cuda_graph import DecodeGraphs, graph_sizes
from glmserve.runner.prompt_graphs import PromptGraphs, PromptShape
from tests.engine.golden import generate, make_engine
from tests.models.tiny import FIXTURES, tiny_cases

NO_MEMORY: Any = None  # nothing is recorded here


def test_all_shapes_get_a_graph_and_none_of_them_touches_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu", max_num_seqs=4)
    generate(engine, tiny_cases(FIXTURES / "chatglm-tiny")[:4])  # leaves its rows in the persistent inputs
    runner = engine.runner
    assert runner.inputs.packed.any() and not engine.prepare_ahead(), "without graphs there is nothing to prepare"

    runner.graphs = DecodeGraphs(lambda size: torch.empty(0), 4, NO_MEMORY)
    runner.prompt_graphs = PromptGraphs(lambda shape: torch.empty(0), 4, max_blocks=64, axes=2, device=runner.device, memory=NO_MEMORY)
    sizes, shapes = list[int](), list[PromptShape]()

    def capture(graphs: Any, shape: Any) -> None:
        rows = runner.inputs.packed[: shape if isinstance(shape, int) else shape.sequences]
        assert not rows[:, SEQ_LEN].any() and not rows[:, SLOT].any()
        if isinstance(shape, int):
            sizes.append(shape)
        else:
            shapes.append(shape)
            inputs = runner.prompt_graphs.unpack(shape, runner.model.rotary)  # type: ignore[union-attr]
            assert not inputs.metadata.slot_mapping.any() and not inputs.metadata.block_tables.any()
        graphs._graphs[shape] = (None, torch.empty(0))

    for kind in (DecodeGraphs, PromptGraphs):
        monkeypatch.setattr(kind, "capture", capture)
    while engine.prepare_ahead():
        assert len(sizes) + len(shapes) < 1000
    assert sizes == graph_sizes(4)
    assert shapes == [PromptShape(tokens, sequences, True) for sequences in (1, 2, 4) for tokens in range(64, 1025, 64)]


def test_nothing_is_prepared_while_a_request_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu")
    monkeypatch.setattr(engine.runner, "prepare_ahead", lambda: True)
    assert engine.prepare_ahead()
    case = tiny_cases(FIXTURES / "chatglm-tiny")[0]
    engine.add_request(EngineRequest("a", case.prompt, SamplingParams(max_tokens=2), 0.0))
    while engine.has_unfinished_requests():
        assert not engine.prepare_ahead()
        engine.step()
    assert engine.prepare_ahead()
