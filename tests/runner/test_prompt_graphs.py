"""A step padded to the shape of a CUDA graph is the step itself, and a sequence of padding that lies in the null block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glmserve.layers.rotary import RotaryTable
from glmserve.runner.input_batch import NUM_BUFFERS, PrefillArrays, prefill_inputs
from glmserve.runner.prompt_graphs import PromptGraphs, PromptShape

CPU = torch.device("cpu")
NO_MEMORY: Any = None  # nothing is recorded here
ROTARY = RotaryTable(torch.tensor([1.0, 0.1]), 100, CPU)


def graphs_of(max_num_seqs: int) -> PromptGraphs:
    return PromptGraphs(lambda shape: torch.empty(0), max_num_seqs, max_blocks=64, axes=2, device=CPU, memory=NO_MEMORY)


def step(query_lens: list[int], before: int = 0) -> PrefillArrays:
    """Sequences with `before` tokens in the cache already."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 90, (sum(query_lens), 4)).astype(np.int32)
    tables = [rng.integers(1, 50, size=rng.integers(1, 7)).tolist() for _ in query_lens]
    return PrefillArrays(tokens, tables, query_lens, [count + before for count in query_lens], [max(0, count - 2) for count in query_lens])


@pytest.mark.parametrize("query_lens, before", [([17], 0), ([5, 40, 19], 0), ([64], 0), ([30, 2], 8)])
def test_a_padded_step_begins_with_the_step_itself(query_lens: list[int], before: int) -> None:
    arrays, graphs = step(query_lens, before), graphs_of(8)
    for _ in range(NUM_BUFFERS):  # in every buffer, what an earlier step left
        graphs.fill(PromptShape(1024, 8, True), step([48] * 8, 3))
    shape = graphs.shape_for(arrays, len(query_lens))
    assert shape == PromptShape(64, {1: 1, 2: 2, 3: 4}[len(query_lens)], before == 0)
    graphs.fill(shape, arrays)
    padded, plain = graphs.unpack(shape, ROTARY), prefill_inputs(arrays, ROTARY, CPU)
    count, num_sequences = len(arrays.tokens), len(query_lens)
    for name in ("cos", "sin", "slot_mapping"):
        long, short = getattr(padded.metadata, name), getattr(plain.metadata, name)
        assert len(long) == shape.tokens and torch.equal(long[:count], short), name
    for name in ("seq_lens", "context_lens"):
        long, short = getattr(padded.metadata, name), getattr(plain.metadata, name)
        assert torch.equal(long[:num_sequences], short) and not long[num_sequences : shape.sequences].any(), name
    assert torch.equal(padded.token_ids[:count], plain.token_ids) and torch.equal(padded.last_rows[:num_sequences], plain.last_rows)
    for row, table in enumerate(arrays.tables):
        assert padded.metadata.block_tables[row, : len(table)].tolist() == table
    assert padded.metadata.max_query_len >= max(query_lens) and padded.metadata.whole == plain.metadata.whole
    assert padded.metadata.padded and not plain.metadata.padded


def test_the_padding_is_a_sequence_in_the_null_block() -> None:
    arrays, graphs = step([17, 9]), graphs_of(8)
    for _ in range(NUM_BUFFERS):  # in every buffer, what an earlier step left
        graphs.fill(PromptShape(1024, 8, True), step([80] * 8))
    shape = PromptShape(64, 4, True)
    graphs.fill(shape, arrays)
    padded = graphs.unpack(shape, ROTARY)
    assert padded.metadata.query_starts is not None
    assert padded.metadata.query_starts.tolist() == [0, 17, 26, 26, 26, 64]
    assert padded.metadata.seq_lens.tolist() == [17, 9, 0, 0, 38]
    assert not padded.metadata.block_tables[-1].any() and not padded.metadata.slot_mapping[26:].any() and not padded.token_ids[26:].any()
    assert ((padded.last_rows >= 0) & (padded.last_rows < 64)).all()


@pytest.mark.parametrize("whole", [True, False])
def test_lone_prompts_are_captured_over_inputs_that_point_nowhere_else(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    graphs, captured = graphs_of(8), list[PromptShape]()

    def capture(shape: PromptShape) -> None:
        inputs = graphs.unpack(shape, ROTARY)
        assert ((inputs.last_rows >= 0) & (inputs.last_rows < shape.tokens)).all() and not inputs.metadata.slot_mapping.any()
        captured.append(shape)

    monkeypatch.setattr(graphs, "capture", capture)
    graphs.capture_lone_prompts(whole)
    likeliest = [PromptShape(tokens, 1, whole) for tokens in range(64, 513, 64)]
    assert captured == [*likeliest, PromptShape(64, 1, not whole), PromptShape(128, 2, whole)]


def test_a_step_on_its_way_is_not_overwritten_on_the_host() -> None:
    graphs, sent = graphs_of(8), list[int]()
    for _ in range(NUM_BUFFERS):
        sent.append(graphs._hosts[graphs._turn][0].data_ptr())
        graphs.fill(PromptShape(64, 1, True), step([5]))
    assert len(set(sent)) == NUM_BUFFERS


def test_every_field_of_the_sequences_begins_at_16_bytes() -> None:
    """Triton compiles a kernel anew for pointers that do not."""
    for num_sequences in range(1, 10):
        metadata = prefill_inputs(step([3] * num_sequences), ROTARY, CPU).metadata
        assert metadata.query_starts is not None and metadata.context_lens is not None
        for field in (metadata.query_starts, metadata.seq_lens, metadata.context_lens):
            assert (field.data_ptr() - metadata.query_starts.data_ptr()) % 16 == 0 and field.is_contiguous()


def test_which_steps_have_a_graph() -> None:
    graphs = graphs_of(4)
    assert graphs.shape_for(step([1]), 1) == PromptShape(64, 1, True)
    assert graphs.shape_for(step([65, 20, 3]), 3) == PromptShape(128, 4, True)
    assert graphs.shape_for(step([1000]), 1) == PromptShape(1024, 1, True)
    assert graphs.shape_for(step([1025]), 1) is None, "too many tokens"
    assert graphs.shape_for(step([9] * 5), 5) is None, "more sequences than a batch has"
    assert graphs.shape_for(step([9, 9]), 1) is None, "one of them is not whole yet"
    assert graphs_of(3).shape_for(step([9] * 3), 3) is None, "the next size is more than a batch has"
