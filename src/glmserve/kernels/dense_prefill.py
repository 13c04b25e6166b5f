"""Attention of whole prompts over their own keys and values, read from q|k|v and not from the cache: the usual prefill.

Several sequences a launch, each with a context of its own length (0 where it is causal throughout).  It serves steps in which every
sequence starts at its first token; `paged_prefill_attention` serves the others.  Twin: `paged_attention_torch`, which reads the same
numbers in the cache.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import has_large_shared_memory, interpreting, next_power_of_2, tl, triton
from glmserve.kernels.hopper_prefill import hopper_prefill_attention, serves_hopper_prefill
from glmserve.kernels.prefill_keys import attend_keys
from glmserve.kernels.scaled_rows import levels_of


def dense_prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    padded: bool = False,
    level_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v of each sequence: [num_tokens, num_heads, head_dim].

    query: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads, head_dim]; sequences one after the other, any
    strides but a dense last axis, the first two axes' equal for all three.  query_starts: int32 [num_seqs + 1].
    context_lens: int32 [num_seqs], how many of a sequence's first tokens all of its tokens see; beyond them each sees those up to itself.
    padded: sequences may be empty, and all of them far shorter than max_query_len.
    level_scale: float32 of one number; with it the result is its float8_e4m3fn levels.
    """
    if not padded and serves_hopper_prefill(query, max_query_len):
        return hopper_prefill_attention(query, key, value, query_starts, context_lens, max_query_len, scale, level_scale)
    num_heads, head_dim = query.shape[1:]
    assert query.stride() == key.stride() == value.stride() and query.stride(1) == head_dim  # one set of addresses serves all
    out = query.new_empty(query.shape, dtype=query.dtype if level_scale is None else torch.float8_e4m3fn)
    precise = query.dtype == torch.float32
    tile = 32 if precise else 64
    num_seqs = context_lens.shape[0]
    _dense_prefill_kernel[(num_heads, triton.cdiv(max_query_len, tile), num_seqs)](
        query, key, value, query_starts, context_lens, out, out if level_scale is None else level_scale, scale * 1.4426950408889634,
        query.stride(0), num_heads, num_heads // key.shape[1],
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), TILE=tile, FLOAT32_DOT=precise or interpreting(),
        ROOM=has_large_shared_memory(query.device), ROUNDS=level_scale is not None, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _dense_prefill_kernel(
    query_ptr, key_ptr, value_ptr, start_ptr, context_len_ptr, out_ptr, level_scale_ptr, scale_log2, token_stride, num_heads, group,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TILE: tl.constexpr, FLOAT32_DOT: tl.constexpr, ROOM: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    head, tile, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(start_ptr + seq)
    seq_len = tl.load(start_ptr + seq + 1) - start
    first_row = tile * TILE
    if first_row >= seq_len:
        return
    context_len = tl.load(context_len_ptr + seq)
    row, dim = first_row + tl.arange(0, TILE), tl.arange(0, DIM_BLOCK)
    row_inside = (row < seq_len)[:, None] & (dim < HEAD_DIM)[None, :]
    at = start.to(tl.int64) * token_stride
    query_at = query_ptr + at + head * HEAD_DIM
    key_at = key_ptr + at + head // group * HEAD_DIM
    value_at = value_ptr + at + head // group * HEAD_DIM
    query = tl.load(query_at + row[:, None] * token_stride + dim[None, :], mask=row_inside, other=0.0)
    stop = tl.minimum(seq_len, tl.maximum(context_len, first_row + TILE))
    seen_by_all = tl.minimum(seq_len, tl.maximum(context_len, first_row + 1)) // TILE * TILE  # in whole tiles: no mask there
    mixed = attend_keys(
        query, seen_by_all, stop, row, context_len, key_at, value_at, token_stride, 0, 0, scale_log2,
        TILE, HEAD_DIM, DIM_BLOCK, TILE, 0, FLOAT32_DOT, 3 if ROOM else 2,
    )  # fmt: skip
    if ROUNDS:
        mixed = levels_of(mixed, level_scale_ptr)
    out_at = out_ptr + ((start + row).to(tl.int64) * num_heads + head)[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out_at, mixed.to(out_ptr.dtype.element_ty), mask=row_inside)
