"""Attention of one new token a sequence over its paged K/V, for grouped heads (Llama): the kernel that moves most of a busy step's bytes.

One program serves one (sequence, K/V head, split of the keys) and all query heads of that group, through the matrix units.  Where
sequences times heads do not fill the chip, the keys are split over several programs, and a second kernel merges their parts.
Full heads have a kernel of their own (full_heads_decode).  Twin: `paged_attention_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, interpreting, next_power_of_2, tl, triton

# Measured on an H200 (benchmarks/RESULTS.md, "decode attention"): fewer programs leave memory idle, more only cost merging.
_PROGRAMS_WANTED = 1024
_MAX_SPLITS = 16
_KEYS = 64


def num_key_splits(num_seqs: int, num_kv_heads: int) -> int:
    """Into how many parts the keys of each sequence are cut, from shapes alone, so that a CUDA graph can hold it."""
    return max(1, min(_MAX_SPLITS, _PROGRAMS_WANTED // (num_seqs * num_kv_heads)))


def split_block(splits: int) -> int:
    """For how many splits a merging kernel is compiled: one kernel serves all numbers of them."""
    return 1 if splits == 1 else max(_MAX_SPLITS, next_power_of_2(splits))


def paged_decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    num_splits: int | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v of each sequence's newest token.

    query: [num_seqs, num_heads, head_dim]; caches: [num_blocks, block_size, num_kv_heads, head_dim], any strides but a dense last axis;
    block_tables: int32 [num_seqs, max_blocks]; seq_lens: int32 [num_seqs], the newest token included.  Returns query's shape.
    """
    num_seqs, num_heads, head_dim = query.shape
    block_size, num_kv_heads = key_cache.shape[1], key_cache.shape[2]
    splits = num_splits or num_key_splits(num_seqs, num_kv_heads)
    group = num_heads // num_kv_heads
    dim_block = max(16, next_power_of_2(head_dim))
    assert key_cache.stride() == value_cache.stride()  # one set of addresses serves both
    out = torch.empty_like(query)
    parts = query.new_empty((num_seqs, num_heads, splits, head_dim), dtype=torch.float32) if splits > 1 else out
    part_scales = query.new_empty((num_seqs, num_heads, splits), dtype=torch.float32) if splits > 1 else out
    caches = (key_cache, value_cache, block_tables, seq_lens, out, parts, part_scales, scale * 1.4426950408889634)
    strides = (query.stride(0), query.stride(1), *key_cache.stride()[:3], block_tables.stride(0), num_heads, splits)
    _grouped_heads_kernel[(num_kv_heads, num_seqs, splits)](
        query, *caches, *strides, GROUP=group, GROUP_BLOCK=max(16, next_power_of_2(group)), HEAD_DIM=head_dim, DIM_BLOCK=dim_block,
        BLOCK_SIZE=block_size, KEYS=_KEYS, SPLIT=splits > 1, FLOAT32_DOT=query.dtype == torch.float32 or interpreting(),
        num_warps=4, num_stages=3, **early_start(query),
    )  # fmt: skip
    return _merge_splits(parts, part_scales, out) if splits > 1 else out


def _merge_splits(parts: torch.Tensor, part_scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Put the splits of each head's keys together into `out` [num_seqs, num_heads, head_dim], and return it.

    parts: float32 [num_seqs, num_heads, splits, head_dim], each split's own softmax mix; part_scales: float32 [num_seqs, num_heads,
    splits], log2 of the sum of its weights.
    """
    num_seqs, num_heads, splits, head_dim = parts.shape
    _merge_splits_kernel[(num_seqs * num_heads,)](
        parts, part_scales, out, splits,
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), SPLIT_BLOCK=split_block(splits),
        num_warps=1, **early_start(out),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["splits"])
def _grouped_heads_kernel(
    query_ptr, key_ptr, value_ptr, table_ptr, seq_len_ptr, out_ptr, part_ptr, part_scale_ptr,
    scale_log2, query_s0, query_s1, cache_s0, cache_s1, cache_s2, table_s0, num_heads, splits,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr, SPLIT: tl.constexpr, FLOAT32_DOT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    kv_head, seq, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    seq_len = tl.load(seq_len_ptr + seq)
    keys_a_split = tl.cdiv(tl.cdiv(seq_len, splits), KEYS) * KEYS
    start = split * keys_a_split
    stop = tl.minimum(seq_len, start + keys_a_split)
    dim = tl.arange(0, DIM_BLOCK)
    dim_inside = dim < HEAD_DIM
    member = tl.arange(0, GROUP_BLOCK)  # the query heads that share this K/V head
    head = kv_head * GROUP + member
    query = tl.load(
        query_ptr + seq.to(tl.int64) * query_s0 + head[:, None] * query_s1 + dim[None, :],
        mask=(member < GROUP)[:, None] & dim_inside[None, :], other=0.0,
    )  # fmt: skip
    best = tl.full([GROUP_BLOCK], -1e30, tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    mix = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    for first in range(start, stop, KEYS):
        token = first + tl.arange(0, KEYS)
        inside = token < stop
        block = tl.load(table_ptr + seq * table_s0 + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        offset = token % BLOCK_SIZE
        loaded = inside[:, None] & dim_inside[None, :]
        at = (block * cache_s0 + offset * cache_s1 + kv_head * cache_s2)[:, None] + dim[None, :]
        key = tl.load(key_ptr + at, mask=loaded, other=0.0)
        value = tl.load(value_ptr + at, mask=loaded, other=0.0)
        if FLOAT32_DOT:
            score = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        else:
            score = tl.dot(query, tl.trans(key.to(query.dtype)))
        score = tl.where(inside[None, :], score * scale_log2, -1e30)
        new_best = tl.maximum(best, tl.max(score, axis=1))
        weight = tl.where(inside[None, :], tl.exp2(score - new_best[:, None]), 0.0)
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, axis=1)
        if FLOAT32_DOT:
            mixed = tl.dot(weight, value.to(tl.float32), input_precision="ieee")
        else:
            mixed = tl.dot(weight.to(query.dtype), value.to(query.dtype))
        mix = mix * shrink[:, None] + mixed
        best = new_best
    stored = (member < GROUP)[:, None] & dim_inside[None, :]
    if not SPLIT:
        row = out_ptr + (seq.to(tl.int64) * num_heads + head[:, None]) * HEAD_DIM + dim[None, :]
        tl.store(row, (mix / tl.maximum(total, 1e-30)[:, None]).to(out_ptr.dtype.element_ty), mask=stored)
    else:
        part = (seq.to(tl.int64) * num_heads + head) * splits + split
        tl.store(part_ptr + part[:, None] * HEAD_DIM + dim[None, :], mix / tl.maximum(total, 1e-30)[:, None], mask=stored)
        tl.store(part_scale_ptr + part, tl.where(total > 0, best + tl.log2(tl.maximum(total, 1e-30)), -1e30), mask=member < GROUP)


@triton.jit(do_not_specialize=["splits"])
def _merge_splits_kernel(
    part_ptr, part_scale_ptr, out_ptr, splits, HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    split, dim = tl.arange(0, SPLIT_BLOCK), tl.arange(0, DIM_BLOCK)
    inside = split < splits
    part_scale = tl.load(part_scale_ptr + row * splits + split, mask=inside, other=-1e30)
    weight = tl.where(inside, tl.exp2(part_scale - tl.max(part_scale, axis=0)), 0.0)
    part = tl.load(
        part_ptr + (row * splits + split)[:, None] * HEAD_DIM + dim[None, :], mask=inside[:, None] & (dim < HEAD_DIM)[None, :], other=0.0
    )
    mix = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + row * HEAD_DIM + dim, mix.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)
