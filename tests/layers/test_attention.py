"""Attention over the paged cache against the definition: explicit masks, explicit rotation, one query at a time, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from glmserve.kernels import decode_rectangle
from glmserve.layers.attention import AttentionMetadata, HostSequences, LayerCache, NewestTokens, attention, attention_of_newest
from glmserve.layers.rotary import RotaryTable

HEADS, KV_HEADS, DIM, BLOCK_SIZE, SCALE = 4, 2, 8, 4, 0.4
FREQUENCIES = {1: torch.tensor([1.0, 0.3, 0.1, 0.02]), 2: torch.tensor([1.0, 0.1])}


@dataclass
class Sequence:
    """A sequence whose last `query_len` tokens are computed now; `blocks` are its table."""

    seq_len: int
    query_len: int
    context_len: int
    blocks: list[int]


Part = tuple[Sequence, int, int]  # tokens [start, stop) of one


class Step:
    """The tokens of several sequences: all their q, k, v, and a cache that holds what was computed before."""

    def __init__(self, sequences: list[Sequence], axes: int, kv_heads: int = KV_HEADS) -> None:
        self.sequences, self.axes, self.kv_heads = sequences, axes, kv_heads
        generator = torch.Generator().manual_seed(len(sequences))
        self.qkv = [torch.randn(s.seq_len, HEADS + 2 * kv_heads, DIM, generator=generator) for s in sequences]
        self.positions = [torch.randint(0, 50, (s.seq_len, axes), generator=generator) for s in sequences]
        self.table = RotaryTable(FREQUENCIES[axes], 64, torch.device("cpu"))
        shape = (40, BLOCK_SIZE, kv_heads, DIM)
        self.cache = LayerCache(torch.full(shape, float("nan")), torch.full(shape, float("nan")))  # what is not written must not be read

    def run(self, decode: bool = False) -> list[torch.Tensor]:
        """Computes what came before in a step of its own, then the queries; returns [query_len, HEADS * DIM] of each sequence."""
        self._run_earlier()
        parts = [(s, s.seq_len - s.query_len, s.seq_len) for s in self.sequences]
        out = attention(self._qkv_of(parts), self.cache, self._metadata(parts, decode), HEADS, SCALE)
        return list(out.split([s.query_len for s in self.sequences]))

    def run_newest(self, count: int) -> list[torch.Tensor]:
        """Like `run`, but attends for the last query of the first `count` sequences alone; returns [1, HEADS * DIM] of each of these."""
        self._run_earlier()
        parts = [(s, s.seq_len - s.query_len, s.seq_len) for s in self.sequences]
        last_rows = torch.tensor([s.query_len for s in self.sequences]).cumsum(0)[:count] - 1
        newest = NewestTokens(last_rows.int(), self._metadata([(s, s.seq_len - 1, s.seq_len) for s in self.sequences[:count]], decode=True))
        out = attention_of_newest(self._qkv_of(parts), self.cache, self._metadata(parts), newest, HEADS, SCALE)
        return list(out.split(1))

    def _run_earlier(self) -> None:
        if earlier := [(s, 0, s.seq_len - s.query_len) for s in self.sequences if s.seq_len > s.query_len]:
            attention(self._qkv_of(earlier), self.cache, self._metadata(earlier), HEADS, SCALE)

    def _qkv_of(self, parts: list[Part]) -> torch.Tensor:
        return torch.cat([self.qkv[self.sequences.index(s)][start:stop] for s, start, stop in parts])

    def _metadata(self, parts: list[Part], decode: bool = False) -> AttentionMetadata:
        cos, sin = self.table.lookup(torch.cat([self.positions[self.sequences.index(s)][start:stop] for s, start, stop in parts]))
        slots = [s.blocks[t // BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE for s, start, stop in parts for t in range(start, stop)]
        width = max(len(s.blocks) for s, _, _ in parts)
        return AttentionMetadata(
            cos=cos,
            sin=sin,
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor([s.blocks + [0] * (width - len(s.blocks)) for s, _, _ in parts], dtype=torch.int32),
            seq_lens=torch.tensor([stop for _, _, stop in parts], dtype=torch.int32),
            query_starts=None if decode else torch.tensor(np.cumsum([0, *(stop - start for _, start, stop in parts)])),
            host=HostSequences(
                [s.blocks for s, _, _ in parts],
                [stop - start for _, start, stop in parts],
                [stop for _, _, stop in parts],
                [s.context_len for s, _, _ in parts],
            ),
        )

    def expected(self, number: int) -> np.ndarray:
        """The definition, for the queries of one sequence."""
        sequence, qkv = self.sequences[number], self.qkv[number].double().numpy()
        rotated = rotate(qkv[:, : HEADS + self.kv_heads], self.positions[number].numpy(), FREQUENCIES[self.axes].double().numpy())
        query, key, value = rotated[:, :HEADS], rotated[:, HEADS:], qkv[:, HEADS + self.kv_heads :]
        out = np.empty((sequence.query_len, HEADS, DIM))
        for row, token in enumerate(range(sequence.seq_len - sequence.query_len, sequence.seq_len)):
            visible = max(token + 1, sequence.context_len)
            for head in range(HEADS):
                kv_head = head // (HEADS // self.kv_heads)
                scores = np.exp(key[:visible, kv_head] @ query[token, head] * SCALE)
                out[row, head] = scores / scores.sum() @ value[:visible, kv_head]
        return out.reshape(sequence.query_len, -1)


def rotate(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Each pair as a complex number, turned by its axis' position times its frequency."""
    out, pairs = x.copy(), len(frequencies)
    for axis in range(positions.shape[1]):
        start = axis * 2 * pairs
        first, second = slice(start, start + pairs), slice(start + pairs, start + 2 * pairs)
        turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * positions[:, axis, None, None] * frequencies)
        out[..., first], out[..., second] = turned.real, turned.imag
    return out


def assert_right(step: Step, outputs: list[torch.Tensor]) -> None:
    for number, out in enumerate(outputs):
        assert np.abs(out.numpy() - step.expected(number)).max() < 1e-5


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_contexts_chunks_and_answers_in_one_step(axes: int, kv_heads: int) -> None:
    step = Step(
        [
            Sequence(9, 9, 9, [1, 2, 3]),  # a context of a prefix model
            Sequence(9, 9, 8, [5, 8, 7]),  # one and its <sop>
            Sequence(9, 9, 4, [31, 32, 33]),  # one and an answer begun
            Sequence(14, 6, 8, [24, 28, 26, 27]),  # what follows one
            Sequence(9, 9, 0, [9, 4, 30]),  # a causal prompt in scattered blocks
            Sequence(14, 5, 0, [20, 21, 22, 23]),  # the second part of one
            Sequence(1, 1, 1, [39]),
            Sequence(8, 8, 0, [12, 11]),
        ],
        axes,
        kv_heads,
    )
    assert_right(step, step.run())


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_newest_tokens_alone(kv_heads: int) -> None:
    """What is attended for them is right, and K and V of all tokens are stored."""
    sequences = [Sequence(9, 9, 8, [1, 2, 3]), Sequence(14, 6, 8, [9, 4, 30, 31]), Sequence(7, 7, 0, [12, 11]), Sequence(5, 5, 0, [20, 21])]
    step, whole = (Step(sequences, axes=2, kv_heads=kv_heads) for _ in range(2))
    outputs = step.run_newest(3)
    whole.run()
    assert len(outputs) == 3
    for number, out in enumerate(outputs):
        assert np.abs(out.numpy() - whole.expected(number)[-1:]).max() < 1e-5
    for stored, expected in ((step.cache.key, whole.cache.key), (step.cache.value, whole.cache.value)):
        torch.testing.assert_close(stored, expected, equal_nan=True)


@pytest.mark.parametrize("limit", [0, 2**16], ids=["one by one", "as a rectangle"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_newest_tokens_of_sequences_of_different_lengths(monkeypatch: pytest.MonkeyPatch, kv_heads: int, limit: int) -> None:
    monkeypatch.setattr(decode_rectangle, "_VALUES_WORTH_COPYING", limit)
    step = Step(
        [Sequence(1, 1, 0, [7]), Sequence(8, 1, 0, [2, 1]), Sequence(17, 1, 16, [3, 4, 5, 6, 8]), Sequence(4, 1, 0, [20])],
        axes=2,
        kv_heads=kv_heads,
    )
    assert_right(step, step.run(decode=True))
