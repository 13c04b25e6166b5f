"""Attention of long prompts on Hopper, in Triton's Gluon: softmax and matrix units at work together (FlashAttention-3, arXiv 2407.08608).

A program has three partitions: a warp that fetches tiles by TMA, and two warpgroups with 64 queries of a head each, which share its keys
and values.  A warpgroup issues the scores of the next keys, then the product of the present weights and values, and works on the next
softmax while the latter runs.  One program a multiprocessor takes every n-th piece of work, so that the next piece's tiles arrive
meanwhile.  Keys are met from the last to the first: the ragged tile comes first, and only that round and those near the diagonal have
mask code.
"""

from __future__ import annotations

from typing import Any

import torch

from glmserve.kernels.backend import triton
from glmserve.kernels.gluon_backend import (
    HAS_GLUON,
    TensorDescriptor,
    fence_async_shared,
    gl,
    gluon,
    is_hopper,
    mbarrier,
    num_multiprocessors,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

_HEAD_DIM = 128
_KEYS, _STAGES = 128, 2  # keys a round, and how many rounds' tiles fit in shared memory beside the queries
_HALF = 64  # queries of a warpgroup
_FEWEST_QUERIES = 512  # below, a program has too few rounds for its start to pay
_REGISTERS, _FETCH_REGISTERS, _MEAN_REGISTERS = 240, 24, 168  # a thread's: of the warpgroups, of the fetching warp, of the launch


def serves_hopper_prefill(query: torch.Tensor, max_query_len: int) -> bool:
    """Whether `hopper_prefill_attention` serves these queries: Hopper, 16 bits, heads of 128, and prompts worth its start."""
    fits = query.shape[2] == _HEAD_DIM and query.element_size() == 2 and max_query_len >= _FEWEST_QUERIES
    return fits and HAS_GLUON and is_hopper(query.device)


def hopper_prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    level_scale: torch.Tensor | None,
) -> torch.Tensor:
    """As `dense_prefill_attention`, where `serves_hopper_prefill` says so."""
    num_heads = query.shape[1]
    assert query.stride() == key.stride() == value.stride() and query.stride(1) == _HEAD_DIM
    out = query.new_empty(query.shape, dtype=query.dtype if level_scale is None else torch.float8_e4m3fn)
    tiles = triton.cdiv(max_query_len, 2 * _HALF)
    num_work = num_heads * tiles * context_lens.shape[0]
    _hopper_prefill_kernel[(min(num_work, num_multiprocessors(query.device)),)](
        _tiles(query, _HALF), _tiles(key, _KEYS), _tiles(value, _KEYS), query_starts, context_lens, out,
        out if level_scale is None else level_scale, scale * 1.4426950408889634, num_heads, num_heads // key.shape[1], tiles, num_work,
        KEYS=_KEYS, STAGES=_STAGES, ROUNDS=level_scale is not None, REGISTERS=_REGISTERS, FETCH_REGISTERS=_FETCH_REGISTERS,
        num_warps=4, maxnreg=_MEAN_REGISTERS,
    )  # fmt: skip
    return out


def _tiles(tensor: torch.Tensor, rows: int) -> Any:
    """A TMA descriptor: tiles of `rows` tokens of one head."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, _HEAD_DIM], gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16)
    return TensorDescriptor(tensor, [tensor.shape[0], tensor.shape[1] * _HEAD_DIM], [tensor.stride(0), 1], [rows, _HEAD_DIM], layout)


@gluon.jit(do_not_specialize=["tiles", "num_work"])
def _hopper_prefill_kernel(
    query_desc, key_desc, value_desc, start_ptr, context_len_ptr, out_ptr, level_scale_ptr, scale_log2, num_heads, group, tiles, num_work,
    KEYS: gl.constexpr, STAGES: gl.constexpr, ROUNDS: gl.constexpr, REGISTERS: gl.constexpr, FETCH_REGISTERS: gl.constexpr,
):  # fmt: skip
    HALF: gl.constexpr = query_desc.block_type.shape[0]
    queries = gl.allocate_shared_memory(query_desc.dtype, [4, HALF, 128], query_desc.layout)  # two pieces of work, two halves each
    keys = gl.allocate_shared_memory(key_desc.dtype, [STAGES, KEYS, 128], key_desc.layout)
    values = gl.allocate_shared_memory(value_desc.dtype, [STAGES, KEYS, 128], value_desc.layout)
    queries_here, queries_free = _barriers(2, 1), _barriers(2, 2)
    keys_here, keys_free = _barriers(STAGES, 1), _barriers(STAGES, 2)
    values_here, values_free = _barriers(STAGES, 1), _barriers(STAGES, 2)
    fence_async_shared()
    here, free = (queries_here, keys_here, values_here), (queries_free, keys_free, values_free)
    plan = (start_ptr, context_len_ptr, num_heads, tiles, num_work)
    buffers = (queries, keys, values)
    gl.warp_specialize(
        [
            (_attend, (plan, buffers, here, free, out_ptr, level_scale_ptr, scale_log2, 0, HALF, KEYS, STAGES, ROUNDS)),
            (_attend, (plan, buffers, here, free, out_ptr, level_scale_ptr, scale_log2, 1, HALF, KEYS, STAGES, ROUNDS)),
            (_fetch, (plan, query_desc, key_desc, value_desc, buffers, here, free, group, HALF, KEYS, STAGES)),
        ],
        [4, 1],
        [REGISTERS, FETCH_REGISTERS],
    )


@gluon.jit
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit
def _piece(work, plan, HALF: gl.constexpr, KEYS: gl.constexpr):
    """A piece of work: its head; its sequence's first token, length and context; its first row there; its rounds (0: nothing to do), and
    those of no mask."""
    start_ptr, context_len_ptr, num_heads, tiles, _num_work = plan
    seq = work // (num_heads * tiles)
    first_row = work // num_heads % tiles * (2 * HALF)
    start = gl.load(start_ptr + seq)
    seq_len = gl.load(start_ptr + seq + 1) - start
    context_len = gl.load(context_len_ptr + seq)
    stop = gl.minimum(seq_len, gl.maximum(context_len, first_row + 2 * HALF))
    rounds = gl.where(first_row < seq_len, gl.cdiv(stop, KEYS), 0)
    unmasked = gl.minimum(seq_len, gl.maximum(context_len, first_row + 1)) // KEYS
    return work % num_heads, start, seq_len, context_len, first_row, rounds, unmasked


@gluon.jit
def _fetch(
    plan, query_desc, key_desc, value_desc, buffers, here, free, group, HALF: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr
):
    """The fetching warp: fills each buffer as soon as both warpgroups have done with it."""
    queries, keys, values = buffers
    queries_here, keys_here, values_here = here
    queries_free, keys_free, values_free = free
    done, step = 0, 0
    for work in range(gl.program_id(0), plan[4], gl.num_programs(0)):
        head, start, _seq_len, _context_len, first_row, rounds, _unmasked = _piece(work, plan, HALF, KEYS)
        if rounds > 0:
            slot = done % 2
            mbarrier.wait(queries_free.index(slot), done // 2 & 1 ^ 1)
            mbarrier.expect(queries_here.index(slot), 2 * query_desc.block_type.nbytes)
            for half in gl.static_range(2):
                at = [start + first_row + half * HALF, head * 128]
                tma.async_copy_global_to_shared(query_desc, at, queries_here.index(slot), queries.index(slot * 2 + half))
            done += 1
        for round in range(rounds):
            at = [start + (rounds - 1 - round) * KEYS, head // group * 128]
            slot, phase = step % STAGES, step // STAGES & 1 ^ 1
            mbarrier.wait(keys_free.index(slot), phase)
            mbarrier.expect(keys_here.index(slot), key_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(key_desc, at, keys_here.index(slot), keys.index(slot))
            mbarrier.wait(values_free.index(slot), phase)
            mbarrier.expect(values_here.index(slot), value_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(value_desc, at, values_here.index(slot), values.index(slot))
            step += 1


@gluon.jit
def _attend(
    plan, buffers, here, free, out_ptr, level_scale_ptr, scale_log2, SIDE: gl.constexpr, HALF: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, ROUNDS: gl.constexpr,
):  # fmt: skip
    """A warpgroup: the rows of one half of each piece of work."""
    queries, keys, values = buffers
    queries_here, keys_here, values_here = here
    queries_free, keys_free, values_free = free
    SCORE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    MIX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    STORED: gl.constexpr = gl.BlockedLayout([8, 8], [2, 16], [4, 1], [1, 0])  # a warp keeps its 16 rows, a row is stored in one go
    done, step = 0, 0
    for work in range(gl.program_id(0), plan[4], gl.num_programs(0)):
        head, start, seq_len, context_len, first_row, rounds, unmasked = _piece(work, plan, HALF, KEYS)
        if rounds > 0:
            first = (rounds - 1) * KEYS
            row = first_row + SIDE * HALF + gl.arange(0, HALF, gl.SliceLayout(1, SCORE))
            seen = gl.minimum(seq_len, gl.maximum(context_len, row + 1))  # how many keys each row sees
            slot = step % STAGES
            if first + KEYS > seq_len:  # of another sequence: 0 * NaN would be NaN
                mbarrier.wait(values_here.index(slot), step // STAGES & 1)
                _clear_rows(values.index(slot), seq_len - first, KEYS)
            mbarrier.wait(queries_here.index(done % 2), done // 2 & 1)
            query = queries.index(done % 2 * 2 + SIDE)
            mbarrier.wait(keys_here.index(slot), step // STAGES & 1)
            score = gl.zeros([HALF, KEYS], gl.float32, SCORE)
            score = warpgroup_mma(query, keys.index(slot).permute((1, 0)), score, use_acc=False, is_async=True)
            score = warpgroup_mma_wait(0, deps=[score])
            mbarrier.arrive(keys_free.index(slot))
            score = _mask(score, seen - first, KEYS, SCORE)
            best = gl.max(score, 1) * scale_log2
            score = gl.exp2(score * scale_log2 - best[:, None])
            total = gl.sum(score, 1)
            shrink = gl.full_like(best, 1.0)
            mix = gl.zeros([HALF, 128], gl.float32, MIX)
            for MASKED in gl.static_range(1, -1, -1):
                more = gl.maximum(rounds - 1 - unmasked, 0) if MASKED else gl.minimum(rounds - 1, unmasked)
                for _ in range(more):
                    step += 1
                    first -= KEYS
                    slot, old_slot = step % STAGES, (step - 1) % STAGES
                    mbarrier.wait(keys_here.index(slot), step // STAGES & 1)
                    next_score = gl.zeros([HALF, KEYS], gl.float32, SCORE)
                    next_score = warpgroup_mma(query, keys.index(slot).permute((1, 0)), next_score, use_acc=False, is_async=True)
                    mix = mix * gl.convert_layout(shrink, gl.SliceLayout(1, MIX))[:, None]
                    weight = gl.convert_layout(score.to(queries.dtype), gl.DotOperandLayout(0, MIX, 2))
                    mbarrier.wait(values_here.index(old_slot), (step - 1) // STAGES & 1)
                    mix = warpgroup_mma(weight, values.index(old_slot), mix, is_async=True)
                    score = warpgroup_mma_wait(1, deps=[next_score])  # the softmax below overlaps with the product above
                    mbarrier.arrive(keys_free.index(slot))
                    if MASKED:
                        score = _mask(score, seen - first, KEYS, SCORE)
                    new_best = gl.maximum(best, gl.max(score, 1) * scale_log2)
                    score = gl.exp2(score * scale_log2 - new_best[:, None])
                    shrink = gl.exp2(best - new_best)
                    total = total * shrink + gl.sum(score, 1)
                    best = new_best
                    mix = warpgroup_mma_wait(0, deps=[mix])
                    mbarrier.arrive(values_free.index(old_slot))
            mix = mix * gl.convert_layout(shrink, gl.SliceLayout(1, MIX))[:, None]
            weight = gl.convert_layout(score.to(queries.dtype), gl.DotOperandLayout(0, MIX, 2))
            mbarrier.arrive(queries_free.index(done % 2))
            slot = step % STAGES
            mbarrier.wait(values_here.index(slot), step // STAGES & 1)
            mix = warpgroup_mma(weight, values.index(slot), mix, is_async=True)
            share = 1.0 / total
            if ROUNDS:  # a GPU's conversion saturates
                share = share * (1.0 / gl.load(level_scale_ptr))
            share = gl.convert_layout(share, gl.SliceLayout(1, MIX))
            mix = warpgroup_mma_wait(0, deps=[mix])
            mbarrier.arrive(values_free.index(slot))
            stored = gl.convert_layout((mix * share[:, None]).to(out_ptr.dtype.element_ty), STORED)
            row_out = first_row + SIDE * HALF + gl.arange(0, HALF, gl.SliceLayout(1, STORED))
            at = ((start + row_out).to(gl.int64) * plan[2] + head)[:, None] * 128 + gl.arange(0, 128, gl.SliceLayout(0, STORED))[None, :]
            gl.store(out_ptr + at, stored, mask=(row_out < seq_len)[:, None])
            step += 1
            done += 1


@gluon.jit
def _mask(score, seen, KEYS: gl.constexpr, SCORE: gl.constexpr):
    """A row that sees no key yet gets weights of 1, which its first visible key shrinks to 0."""
    return gl.where(gl.arange(0, KEYS, gl.SliceLayout(0, SCORE))[None, :] < seen[:, None], score, -1e30)


@gluon.jit
def _clear_rows(tile, kept, KEYS: gl.constexpr):
    """Zero a shared tile's rows from `kept` on.  Both warpgroups may do it at once: they write the same bytes."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    inside = gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT)) < kept
    old = tile.load(LAYOUT)
    tile.store(gl.where(inside[:, None], old, gl.zeros_like(old)))
    fence_async_shared()
