"""The inner loop of both prefill kernels: a tile of queries meets keys and values, round by round; flash attention (arXiv 2205.14135).

The rule of visibility is the same for every model: a query at position p sees key k where k < context_len or k <= p.
"""

from __future__ import annotations

from glmserve.kernels.backend import tl, triton


@triton.jit
def attend_keys(
    query, seen_by_all, stop, position, context_len, key_at, value_at, token_stride, table_at, block_stride, scale_log2,
    QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FLOAT32_DOT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """softmax(q k^T) v over keys [0, stop), float32 [QUERIES, DIM_BLOCK].

    query: [QUERIES, DIM_BLOCK] at `position` [QUERIES].  The head's keys and values begin at `key_at` and `value_at`, a token every
    `token_stride`; with a BLOCK_SIZE they lie in blocks that `table_at` names, `block_stride` apart.  Keys before `seen_by_all` need no
    mask.
    """
    dim, lane = tl.arange(0, DIM_BLOCK), tl.arange(0, KEYS)
    best = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mix = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
    for first in tl.range(0, stop, KEYS, num_stages=STAGES):
        token = first + lane
        here = tl.minimum(token, stop - 1)  # beyond the end the last one again, so that loads need no mask
        if BLOCK_SIZE:
            block = tl.load(table_at + here // BLOCK_SIZE).to(tl.int64)
            at = (block * block_stride + here % BLOCK_SIZE * token_stride)[:, None] + dim[None, :]
        else:
            at = here[:, None] * token_stride + dim[None, :]
        if HEAD_DIM != DIM_BLOCK:
            key = tl.load(key_at + at, mask=(dim < HEAD_DIM)[None, :], other=0.0)
            value = tl.load(value_at + at, mask=(dim < HEAD_DIM)[None, :], other=0.0)
        else:
            key = tl.load(key_at + at)
            value = tl.load(value_at + at)
        if FLOAT32_DOT:
            score = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        else:
            score = tl.dot(query, tl.trans(key.to(query.dtype)))
        if first + KEYS > seen_by_all:
            visible = (token < stop)[None, :] & ((token < context_len)[None, :] | (token[None, :] <= position[:, None]))
            score = tl.where(visible, score, -1e25)  # below any `best`, so its weight is 0
        new_best = tl.maximum(best, tl.max(score, axis=1) * scale_log2)
        weight = tl.exp2(score * scale_log2 - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, axis=1)
        if FLOAT32_DOT:
            mix = tl.dot(weight, value.to(tl.float32), mix * shrink[:, None], input_precision="ieee")
        else:
            mix = tl.dot(weight.to(query.dtype), value.to(query.dtype), mix * shrink[:, None])
        best = new_best
    return mix / tl.maximum(total, 1e-30)[:, None]
