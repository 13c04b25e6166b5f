"""Attention of many tokens a sequence over its paged K/V: prompts, contexts and recomputed answers, several sequences a launch.

Each sequence says for itself whether it is causal: a ChatGLM-6B context is not, everything after `<sop>` is.  Flash attention
(arXiv 2205.14135) with the keys read through the block table.  Twin: `paged_attention_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import has_large_shared_memory, interpreting, next_power_of_2, tl, triton


def paged_prefill_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    seq_lens: torch.Tensor,
    causal: torch.Tensor,
    max_query_len: int,
    scale: float,
) -> torch.Tensor:
    """Attention of the last tokens of each sequence over all its keys.

    query: [num_tokens, num_heads, head_dim], sequences one after the other; sequence i has queries query_starts[i] to query_starts[i+1],
    the last ones of its seq_lens[i] tokens.  Caches: [num_blocks, block_size, num_kv_heads, head_dim], any strides but a dense last axis.
    block_tables: int32 [num_seqs, max_blocks]; query_starts: int32 [num_seqs + 1]; seq_lens, causal: int32 [num_seqs].
    Returns query's shape.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = key_cache.shape[2]
    assert key_cache.stride() == value_cache.stride()  # one set of addresses serves both, which saves registers
    out = torch.empty_like(query)
    precise = query.dtype == torch.float32
    queries = keys = 32 if precise else 64
    _paged_prefill_kernel[(triton.cdiv(max_query_len, queries), num_heads, seq_lens.shape[0])](
        query, key_cache, value_cache, block_tables, query_starts, seq_lens, causal, out,
        scale * 1.4426950408889634, query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        *key_cache.stride()[:3], block_tables.stride(0), num_heads // num_kv_heads,
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), BLOCK_SIZE=key_cache.shape[1], QUERIES=queries, KEYS=keys,
        FLOAT32_DOT=precise or interpreting(), num_warps=4, num_stages=3 if has_large_shared_memory(query.device) else 2,
    )  # fmt: skip
    return out


@triton.jit
def _paged_prefill_kernel(
    query_ptr, key_ptr, value_ptr, table_ptr, query_start_ptr, seq_len_ptr, causal_ptr, out_ptr,
    scale_log2, query_s0, query_s1, out_s0, out_s1, cache_s0, cache_s1, cache_s2, table_s0, group,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    FLOAT32_DOT: tl.constexpr,
):  # fmt: skip
    tile, head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query_start = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_start
    if tile * QUERIES >= query_len:
        return
    seq_len = tl.load(seq_len_ptr + seq)
    causal = tl.load(causal_ptr + seq)
    kv_head = head // group
    row = tile * QUERIES + tl.arange(0, QUERIES)
    position = seq_len - query_len + row  # of each query in its sequence
    dim = tl.arange(0, DIM_BLOCK)
    row_inside = (row < query_len)[:, None] & (dim < HEAD_DIM)[None, :]
    query = tl.load(
        query_ptr + (query_start + row).to(tl.int64)[:, None] * query_s0 + head * query_s1 + dim[None, :], mask=row_inside, other=0.0
    )
    best = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mix = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
    stop = seq_len
    unmasked = seq_len // KEYS * KEYS  # every query of the tile sees all keys before this
    if causal != 0:
        stop = tl.minimum(seq_len, seq_len - query_len + (tile + 1) * QUERIES)
        unmasked = (seq_len - query_len + tile * QUERIES + 1) // KEYS * KEYS
    table_row = table_ptr + seq * table_s0
    best, total, mix = _attend(
        query, best, total, mix, 0, unmasked, stop, position, causal, key_ptr, value_ptr, table_row, kv_head, scale_log2,
        cache_s0, cache_s1, cache_s2, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, KEYS, FLOAT32_DOT, False,
    )  # fmt: skip
    best, total, mix = _attend(
        query, best, total, mix, unmasked, stop, stop, position, causal, key_ptr, value_ptr, table_row, kv_head, scale_log2,
        cache_s0, cache_s1, cache_s2, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, KEYS, FLOAT32_DOT, True,
    )  # fmt: skip
    row_out = out_ptr + (query_start + row).to(tl.int64)[:, None] * out_s0 + head * out_s1 + dim[None, :]
    tl.store(row_out, (mix / tl.maximum(total, 1e-30)[:, None]).to(out_ptr.dtype.element_ty), mask=row_inside)


@triton.jit
def _attend(
    query, best, total, mix, start, end, stop, position, causal, key_ptr, value_ptr, table_ptr, kv_head, scale_log2,
    cache_s0, cache_s1, cache_s2, HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr, FLOAT32_DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, DIM_BLOCK)
    for first in range(start, end, KEYS):
        token = first + tl.arange(0, KEYS)
        inside = token < stop
        block = tl.load(table_ptr + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        offset = token % BLOCK_SIZE
        at = (block * cache_s0 + offset * cache_s1 + kv_head * cache_s2)[:, None] + dim[None, :]
        if MASKED or HEAD_DIM != DIM_BLOCK:
            loaded = inside[:, None] & (dim < HEAD_DIM)[None, :]
            key = tl.load(key_ptr + at, mask=loaded, other=0.0)
            value = tl.load(value_ptr + at, mask=loaded, other=0.0)
        else:
            key = tl.load(key_ptr + at)
            value = tl.load(value_ptr + at)
        if FLOAT32_DOT:
            score = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee") * scale_log2
        else:
            score = tl.dot(query, tl.trans(key.to(query.dtype))) * scale_log2
        if MASKED:
            visible = inside[None, :] & ((causal == 0) | (token[None, :] <= position[:, None]))
            score = tl.where(visible, score, -1e30)
        new_best = tl.maximum(best, tl.max(score, axis=1))
        weight = tl.exp2(score - new_best[:, None])
        if MASKED:
            weight = tl.where(visible, weight, 0.0)
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, axis=1)
        if FLOAT32_DOT:
            mix = tl.dot(weight, value.to(tl.float32), mix * shrink[:, None], input_precision="ieee")
        else:
            mix = tl.dot(weight.to(query.dtype), value.to(query.dtype), mix * shrink[:, None])
        best = new_best
    return best, total, mix
