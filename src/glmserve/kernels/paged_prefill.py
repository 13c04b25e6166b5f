"""Attention of many tokens a sequence over its paged K/V: prompts, what follows a context, recomputed answers, several sequences a launch.

Each sequence says how long its context is: a ChatGLM-6B context sees all of itself, everything from `<sop>` on is causal.
Twin: `paged_attention_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import has_large_shared_memory, interpreting, next_power_of_2, tl, triton
from glmserve.kernels.prefill_keys import attend_keys
from glmserve.kernels.scaled_rows import levels_of


def paged_prefill_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    seq_lens: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    level_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last tokens of each sequence over its keys.

    query: [num_tokens, num_heads, head_dim], sequences one after the other; sequence i has queries query_starts[i] to query_starts[i+1],
    the last ones of its seq_lens[i] tokens.  Caches: [num_blocks, block_size, num_kv_heads, head_dim], any strides but a dense last axis.
    block_tables: int32 [num_seqs, max_blocks]; query_starts: int32 [num_seqs + 1]; seq_lens: int32 [num_seqs]; context_lens: int32
    [num_seqs], how many of a sequence's first tokens all of its queries see; beyond them each sees those up to itself.
    Returns query's shape; with level_scale, float32 of one number, its float8_e4m3fn levels.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = key_cache.shape[2]
    assert key_cache.stride() == value_cache.stride()  # one set of addresses serves both, which saves registers
    out = torch.empty_like(query, dtype=query.dtype if level_scale is None else torch.float8_e4m3fn)
    precise = query.dtype == torch.float32
    tile = 32 if precise else 64
    _paged_prefill_kernel[(triton.cdiv(max_query_len, tile), num_heads, seq_lens.shape[0])](
        query, key_cache, value_cache, block_tables, query_starts, seq_lens, context_lens, out, out if level_scale is None else level_scale,
        scale * 1.4426950408889634, query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        *key_cache.stride()[:3], block_tables.stride(0), num_heads // num_kv_heads,
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), BLOCK_SIZE=key_cache.shape[1], TILE=tile,
        FLOAT32_DOT=precise or interpreting(), ROOM=has_large_shared_memory(query.device),
        ROUNDS=level_scale is not None, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["table_s0"])
def _paged_prefill_kernel(
    query_ptr, key_ptr, value_ptr, table_ptr, query_start_ptr, seq_len_ptr, context_len_ptr, out_ptr, level_scale_ptr,
    scale_log2, query_s0, query_s1, out_s0, out_s1, cache_s0, cache_s1, cache_s2, table_s0, group,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, FLOAT32_DOT: tl.constexpr,
    ROOM: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    tile, head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query_start = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_start
    if tile * TILE >= query_len:
        return
    seq_len = tl.load(seq_len_ptr + seq)
    context_len = tl.load(context_len_ptr + seq)
    row, dim = tile * TILE + tl.arange(0, TILE), tl.arange(0, DIM_BLOCK)
    first_position = seq_len - query_len + tile * TILE
    position = seq_len - query_len + row  # of each query in its sequence
    row_inside = (row < query_len)[:, None] & (dim < HEAD_DIM)[None, :]
    query_at = query_ptr + (query_start + row).to(tl.int64)[:, None] * query_s0 + head * query_s1 + dim[None, :]
    query = tl.load(query_at, mask=row_inside, other=0.0)
    key_at = key_ptr + head // group * cache_s2
    value_at = value_ptr + head // group * cache_s2
    table_at = table_ptr + seq * table_s0
    stop = tl.minimum(seq_len, tl.maximum(context_len, first_position + TILE))
    seen_by_all = tl.minimum(seq_len, tl.maximum(context_len, first_position + 1)) // TILE * TILE  # in whole tiles: no mask there
    mixed = attend_keys(
        query, seen_by_all, stop, position, context_len, key_at, value_at, cache_s1, table_at, cache_s0, scale_log2,
        TILE, HEAD_DIM, DIM_BLOCK, TILE, BLOCK_SIZE, FLOAT32_DOT, 3 if ROOM else 2,
    )  # fmt: skip
    if ROUNDS:
        mixed = levels_of(mixed, level_scale_ptr)
    out_at = out_ptr + (query_start + row).to(tl.int64)[:, None] * out_s0 + head * out_s1 + dim[None, :]
    tl.store(out_at, mixed.to(out_ptr.dtype.element_ty), mask=row_inside)
