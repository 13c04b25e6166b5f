"""Attention of whole prompts over their own keys and values, read from q|k|v and not from the cache: the usual prefill.

Several sequences a launch, each causal or not; flash attention (arXiv 2205.14135).  It serves steps in which every sequence starts at
its first token; `paged_prefill_attention` serves the others.  Twin: `paged_attention_torch`, which reads the same numbers in the cache.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import has_large_shared_memory, interpreting, next_power_of_2, tl, triton


def dense_prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    causal: torch.Tensor,
    max_query_len: int,
    scale: float,
) -> torch.Tensor:
    """softmax(q k^T * scale) v of each sequence: [num_tokens, num_heads, head_dim].

    query: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads, head_dim]; sequences one after the other, any
    strides but a dense last axis, the first two axes' equal for all three.  query_starts: int32 [num_seqs + 1]; causal: int32 [num_seqs].
    """
    num_heads, head_dim = query.shape[1:]
    assert query.stride() == key.stride() == value.stride() and query.stride(1) == head_dim  # one set of addresses serves all
    out = query.new_empty(query.shape)
    precise = query.dtype == torch.float32
    tile = 32 if precise else 64
    num_seqs = causal.shape[0]
    _dense_prefill_kernel[(num_heads, triton.cdiv(max_query_len, tile), num_seqs)](
        query, key, value, query_starts, causal, out, scale * 1.4426950408889634, query.stride(0), num_heads, num_heads // key.shape[1],
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), TILE=tile, FLOAT32_DOT=precise or interpreting(),
        ROOM=has_large_shared_memory(query.device), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _dense_prefill_kernel(
    query_ptr, key_ptr, value_ptr, start_ptr, causal_ptr, out_ptr, scale_log2, token_stride, num_heads, group,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TILE: tl.constexpr, FLOAT32_DOT: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    head, tile, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(start_ptr + seq)
    seq_len = tl.load(start_ptr + seq + 1) - start
    first_row = tile * TILE
    if first_row >= seq_len:
        return
    causal = tl.load(causal_ptr + seq)
    row, dim = first_row + tl.arange(0, TILE), tl.arange(0, DIM_BLOCK)
    row_inside = (row < seq_len)[:, None] & (dim < HEAD_DIM)[None, :]
    at = start.to(tl.int64) * token_stride
    query_at = query_ptr + at + head * HEAD_DIM
    key_at = key_ptr + at + head // group * HEAD_DIM
    value_at = value_ptr + at + head // group * HEAD_DIM
    query = tl.load(query_at + row[:, None] * token_stride + dim[None, :], mask=row_inside, other=0.0)
    stop = tl.where(causal != 0, tl.minimum(seq_len, first_row + TILE), seq_len)
    seen_by_all = tl.where(causal != 0, first_row, seq_len) // TILE * TILE  # keys in whole tiles that every row sees: no mask there
    best = tl.full([TILE], -1e30, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mix = tl.zeros([TILE, DIM_BLOCK], tl.float32)
    best, total, mix = _attend(
        query, best, total, mix, 0, seen_by_all, seq_len, row, causal, key_at, value_at, token_stride, scale_log2,
        HEAD_DIM, DIM_BLOCK, TILE, FLOAT32_DOT, 3 if ROOM else 2, False,
    )  # fmt: skip
    best, total, mix = _attend(
        query, best, total, mix, seen_by_all, stop, seq_len, row, causal, key_at, value_at, token_stride, scale_log2,
        HEAD_DIM, DIM_BLOCK, TILE, FLOAT32_DOT, 1, True,
    )  # fmt: skip
    out_at = out_ptr + ((start + row).to(tl.int64) * num_heads + head)[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out_at, (mix / tl.maximum(total, 1e-30)[:, None]).to(out_ptr.dtype.element_ty), mask=row_inside)


@triton.jit
def _attend(
    query, best, total, mix, begin, end, seq_len, row, causal, key_at, value_at, token_stride, scale_log2,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, TILE: tl.constexpr, FLOAT32_DOT: tl.constexpr, STAGES: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    dim, lane = tl.arange(0, DIM_BLOCK), tl.arange(0, TILE)
    for first in tl.range(begin, end, TILE, num_stages=STAGES):
        token = first + lane
        inside = token < seq_len
        at = token[:, None] * token_stride + dim[None, :]
        if MASKED or HEAD_DIM != DIM_BLOCK:
            loaded = inside[:, None] & (dim < HEAD_DIM)[None, :]
            key = tl.load(key_at + at, mask=loaded, other=0.0)
            value = tl.load(value_at + at, mask=loaded, other=0.0)
        else:
            key = tl.load(key_at + at)
            value = tl.load(value_at + at)
        if FLOAT32_DOT:
            score = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        else:
            score = tl.dot(query, tl.trans(key))
        if MASKED:
            visible = inside[None, :] & ((causal == 0) | (token[None, :] <= row[:, None]))
            score = tl.where(visible, score, -1e20)
        new_best = tl.maximum(best, tl.max(score, axis=1) * scale_log2)
        weight = tl.exp2(score * scale_log2 - new_best[:, None])
        if MASKED:
            weight = tl.where(visible, weight, 0.0)
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, axis=1)
        if FLOAT32_DOT:
            mix = tl.dot(weight, value.to(tl.float32), mix * shrink[:, None], input_precision="ieee")
        else:
            mix = tl.dot(weight.to(value.dtype), value, mix * shrink[:, None])
        best = new_best
    return best, total, mix
