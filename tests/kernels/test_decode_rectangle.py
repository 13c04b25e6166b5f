"""Decode attention over a rectangle of K and V equals attention one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from glmserve.kernels.decode_rectangle import attend_rectangle, decode_rectangle
from glmserve.kernels.paged_attention import paged_attention_torch

BLOCK = 4


def paged(seq_lens: list[int], kv_heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K, V and block tables; whatever no sequence has written is not a number."""
    generator = torch.Generator().manual_seed(0)
    counts = [-(-seq_len // BLOCK) for seq_len in seq_lens]
    order = torch.randperm(sum(counts), generator=generator) + 1
    tables = torch.zeros(len(seq_lens), max(counts) + 1, dtype=torch.int32)
    key, value = torch.full((2, sum(counts) + 1, BLOCK, kv_heads, dim), float("nan"))
    for row, (seq_len, blocks) in enumerate(zip(seq_lens, order.split(counts), strict=True)):
        tables[row, : len(blocks)] = blocks
        for position in range(seq_len):
            place = blocks[position // BLOCK], position % BLOCK
            key[place], value[place] = torch.randn(2, kv_heads, dim, generator=generator)
    return key, value, tables


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 16), (4, 4, 8), (8, 1, 8)])
@pytest.mark.parametrize("seq_lens", [[1], [7], [1, 4, 5, 13], [8, 8]])
def test_it_equals_one_sequence_after_the_other(heads, kv_heads, dim, seq_lens):
    key, value, tables = paged(seq_lens, kv_heads, dim)
    query = torch.randn(len(seq_lens), heads, dim, generator=torch.Generator().manual_seed(1))
    rectangle = decode_rectangle(key, tables, torch.tensor(seq_lens, dtype=torch.int32), query.dtype)
    assert rectangle is not None
    out = attend_rectangle(query, key, value, rectangle, dim**-0.5)
    ones, no_context = [1] * len(seq_lens), [0] * len(seq_lens)
    expected = paged_attention_torch(query, key, value, tables, ones, seq_lens, no_context, dim**-0.5)
    torch.testing.assert_close(out, expected)


def test_long_contexts_are_not_copied():
    cache = torch.zeros(1000, 16, 32, 128)  # the width of ChatGLM-6B
    tables = torch.zeros(2, 500, dtype=torch.int32)
    assert decode_rectangle(cache, tables, torch.tensor([1, 17], dtype=torch.int32), cache.dtype) is None
    assert decode_rectangle(cache, tables, torch.tensor([1, 16], dtype=torch.int32), cache.dtype) is not None
