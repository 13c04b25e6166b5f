"""The inner loop of both prefill kernels: a tile of queries meets keys and values, round by round; flash attention (arXiv 2205.14135).

The rule of visibility is the same for every model: a query at position p sees key k where k < context_len or k <= p.
"""

from __future__ import annotations

from glmserve.kernels.backend import tl, triton


@triton.jit
def attend_keys(
    query, best, total, mix, begin, end, seq_len, position, context_len, key_at, value_at, token_stride, table_at, block_stride, scale_log2,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, FLOAT32_DOT: tl.constexpr,
    STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Go on with keys [begin, end), in rounds of KEYS; returns (best, total, mix), the softmax so far.

    query: [queries, DIM_BLOCK] at `position` [queries].  The head's keys and values begin at `key_at` and `value_at`, a token every
    `token_stride`; with a BLOCK_SIZE they lie in blocks that `table_at` names, `block_stride` apart.  Unless MASKED, every query must see
    every key of every round.
    """
    dim, lane = tl.arange(0, DIM_BLOCK), tl.arange(0, KEYS)
    for first in tl.range(begin, end, KEYS, num_stages=STAGES):
        token = first + lane
        inside = token < seq_len
        if BLOCK_SIZE:
            block = tl.load(table_at + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
            at = (block * block_stride + token % BLOCK_SIZE * token_stride)[:, None] + dim[None, :]
        else:
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
            score = tl.dot(query, tl.trans(key.to(query.dtype)))
        if MASKED:
            visible = inside[None, :] & ((token < context_len)[None, :] | (token[None, :] <= position[:, None]))
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
            mix = tl.dot(weight.to(query.dtype), value.to(query.dtype), mix * shrink[:, None])
        best = new_best
    return best, total, mix
