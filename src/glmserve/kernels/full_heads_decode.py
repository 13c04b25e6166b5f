"""One new token a sequence, full heads (ChatGLM-6B): rotate its query and key, store its key and value, attend.  One pass over q|k|v.

A program serves a head of one piece of the step's keys, or of two (`Pieces`).  One key serves one query here, so there is nothing for the
matrix units to do: the kernel is a stream of K/V that keeps each lane's softmax apart until the end.  The newest key and value come from
q|k|v and not from the cache; the program of the first part writes them there.  Whichever program of a sequence comes last puts its parts
together.  Twin: `rotate_and_store_torch`, then `paged_attention_torch`.
"""

from __future__ import annotations

import functools

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, prefetch_rows, tl, triton
from glmserve.kernels.decode_pieces import KEYS, NUM_PIECE_FIELDS, Pieces
from glmserve.kernels.scaled_rows import TILE, Rounding, ScaledProduct, ScaledRows, levels_of

_STAGES = 3  # rounds of KEYS on their way at once; both measured (benchmarks/RESULTS.md)
_MOST_REGISTERS = 128  # so that 16 programs fit on a multiprocessor: ptxas would take 168 where programs help


def full_heads_decode(
    qkv: torch.Tensor | ScaledProduct,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    pieces: Pieces,
    scale: float,
    rounding: Rounding | None = None,
) -> torch.Tensor | ScaledRows:
    """softmax(q k^T * scale) v of each sequence's newest token, whose K and V go to their slot: [num_seqs, num_heads * head_dim].

    With `rounding` in fp8; by tile that is by head, which must then be a TILE.

    qkv: [num_seqs, 3 * num_heads, head_dim], all q, all k, all v, or such rows as a product that is still to be finished; cos, sin:
    float32 [num_seqs, axes, pairs], contiguous, as in `rotate_and_store`; caches: [num_blocks, block_size, num_heads, head_dim], equal
    strides, a dense last axis; slot_mapping: int64 [num_seqs]; block_tables: int32 [num_seqs, max_blocks]; pieces: of these sequences.
    """
    num_heads, head_dim = key_cache.shape[2:]
    if isinstance(qkv, ScaledProduct):
        finishes, to_finish, dtype = True, qkv[1:], qkv.bias.dtype
        qkv = qkv.levels.view(-1, 3 * num_heads, head_dim)
    else:
        finishes, to_finish, dtype = False, (cos, cos, cos), qkv.dtype
    num_seqs = qkv.shape[0]
    num_pieces = pieces.table.shape[0]
    # How many parts are put together at a time: more take more registers, and so leave room for fewer programs.
    merged = 4 if pieces.num_programs == num_seqs else 32 if pieces.num_programs <= 32 else 16
    assert key_cache.stride() == value_cache.stride()  # one set of addresses serves both
    assert qkv.stride()[1:] == (head_dim, 1) and cos.is_contiguous() and sin.is_contiguous()
    out = torch.empty((num_seqs, num_heads * head_dim), dtype=dtype if rounding is None else torch.float8_e4m3fn, device=qkv.device)
    fixed = isinstance(rounding, torch.Tensor)
    out_scale = rounding if isinstance(rounding, torch.Tensor) else out
    if isinstance(rounding, str):
        assert head_dim == TILE
        out_scale = qkv.new_empty((num_seqs, num_heads), dtype=torch.float32)
    part_out = qkv.new_empty((num_pieces, num_heads, head_dim), dtype=torch.float32)
    part_scale = qkv.new_empty((num_pieces, num_heads), dtype=torch.float32)
    key_bytes = head_dim * key_cache.element_size()
    _full_heads_kernel[(num_heads, pieces.num_programs)](
        qkv, *to_finish, cos, sin, key_cache, value_cache, slot_mapping, block_tables, pieces.table, out, out_scale,
        part_out, part_scale, _arrivals(num_seqs * num_heads, qkv.device),
        scale * 1.4426950408889634, qkv.stride(0), *key_cache.stride()[:3], block_tables.stride(0), num_heads, num_seqs,
        HEAD_DIM=head_dim, DIM_BLOCK=max(16, next_power_of_2(head_dim)), AXES=cos.shape[1], PAIRS=cos.shape[2],
        BLOCK_SIZE=key_cache.shape[1], KEYS=KEYS, STAGES=_STAGES, FIELDS=NUM_PIECE_FIELDS,
        MERGED=merged, FINISHES=finishes, ROUNDS=rounding is not None, FIXED=fixed,
        KEY_BYTES=key_bytes if key_bytes in (128, 256) else 0, num_warps=1,
        maxnreg=_MOST_REGISTERS if merged == 4 else None, **early_start(qkv),
    )  # fmt: skip
    if rounding is None:
        return out
    return ScaledRows(out, out_scale.expand(num_seqs) if fixed else out_scale)


@functools.cache
def _arrivals(count: int, device: torch.device) -> torch.Tensor:
    """How many programs of each head are done.  The last one sets it back to 0, so one set of counters serves every launch in a stream."""
    return torch.zeros(count, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_seqs"])
def _full_heads_kernel(
    qkv_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, cos_ptr, sin_ptr, key_ptr, value_ptr, slot_ptr, table_ptr,
    piece_ptr, out_ptr, out_scale_ptr, part_ptr, part_scale_ptr, arrival_ptr,
    scale_log2, qkv_stride, cache_s0, cache_s1, cache_s2, table_s0, num_heads, num_seqs,
    HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, AXES: tl.constexpr, PAIRS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, FIELDS: tl.constexpr, MERGED: tl.constexpr,
    FINISHES: tl.constexpr, ROUNDS: tl.constexpr, FIXED: tl.constexpr, KEY_BYTES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    dim, lane = tl.arange(0, DIM_BLOCK), tl.arange(0, KEYS)
    dim_inside = dim < HEAD_DIM
    # "Rotate half" in each axis' part of the head: element i turns with element i + PAIRS of its part.
    place = dim % (2 * PAIRS)
    other = dim - place + (place + PAIRS) % (2 * PAIRS)
    sign = tl.where(place < PAIRS, -1.0, 1.0)
    angle = dim // (2 * PAIRS) * PAIRS + place % PAIRS
    piece = tl.program_id(1)
    if piece >= num_seqs:
        piece = tl.where(tl.load(piece_ptr + piece * FIELDS + 3) > 0, piece, -1)  # unless it is nobody's
    while piece >= 0:
        # piece >> 24 is 0, which the compiler does not know: else it keeps whatever hangs on the head alone for a second piece, and spills
        head = tl.program_id(0) + (piece >> 24)
        seq, start, piece_at = piece, 0, piece_ptr + piece * FIELDS
        if piece >= num_seqs:  # else known without waiting for the table
            seq, start = tl.load(piece_at), tl.load(piece_at + 1)
        stop, parts = tl.load(piece_at + 2), tl.load(piece_at + 3)
        further, next_piece = tl.load(piece_at + 4), tl.load(piece_at + 5)
        # What does not come from the kernel before this one is on its way while that one ends.
        cos = tl.load(cos_ptr + seq * AXES * PAIRS + angle, mask=dim_inside, other=0.0)
        sin = tl.load(sin_ptr + seq * AXES * PAIRS + angle, mask=dim_inside, other=0.0) * sign
        slot = tl.load(slot_ptr + seq)
        if EARLY:
            if KEY_BYTES > 0:  # the first round's keys and values
                ahead = tl.minimum(start + lane, tl.maximum(stop - 1, 0))
                ahead_block = tl.load(table_ptr + seq * table_s0 + ahead // BLOCK_SIZE).to(tl.int64)
                ahead_at = ahead_block * cache_s0 + ahead % BLOCK_SIZE * cache_s1 + head * cache_s2
                prefetch_rows(key_ptr + ahead_at, KEY_BYTES)
                prefetch_rows(value_ptr + ahead_at, KEY_BYTES)
            gdc_launch_dependents()  # before the wait: what comes next has weights to fetch, and room once all programs here have begun
            gdc_wait()
        row_at = qkv_ptr + seq.to(tl.int64) * qkv_stride
        row_scale = tl.load(row_scale_ptr + seq) if FINISHES else 1.0
        query = _turned(row_at, head * HEAD_DIM, dim, other, dim_inside, cos, sin, row_scale, column_scale_ptr, bias_ptr, FINISHES)
        query *= scale_log2
        # Each lane is a softmax of its own over every KEYS-th key: no exchange between threads inside the loop but for q.k itself.
        best = tl.full([KEYS], -1e30, tl.float32)
        total = tl.zeros([KEYS], tl.float32)
        mix = tl.zeros([KEYS, DIM_BLOCK], tl.float32)
        if piece < num_seqs:
            key_place, value_place = (num_heads + head) * HEAD_DIM, (2 * num_heads + head) * HEAD_DIM
            new_key = _turned(row_at, key_place, dim, other, dim_inside, cos, sin, row_scale, column_scale_ptr, bias_ptr, FINISHES)
            new_value = _numbers(row_at, value_place + dim, dim_inside, row_scale, column_scale_ptr, bias_ptr, FINISHES)
            new_key, new_value = new_key.to(key_ptr.dtype.element_ty), new_value.to(value_ptr.dtype.element_ty)
            at = slot // BLOCK_SIZE * cache_s0 + slot % BLOCK_SIZE * cache_s1 + head * cache_s2 + dim
            tl.store(key_ptr + at, new_key, mask=dim_inside)
            tl.store(value_ptr + at, new_value, mask=dim_inside)
            first_lane = (lane == 0) & (parts > 0)
            best = tl.where(first_lane, tl.sum(query * new_key.to(tl.float32), axis=0), best)
            total = tl.where(first_lane, 1.0, total)
            mix = tl.where(first_lane[:, None], new_value.to(tl.float32)[None, :], mix)
        for first in tl.range(start, stop, KEYS, num_stages=STAGES):
            token = first + lane
            inside = token < stop
            here = tl.minimum(token, stop - 1)  # beyond the end the last one again, so that loads need no mask
            block = tl.load(table_ptr + seq * table_s0 + here // BLOCK_SIZE).to(tl.int64)
            at = (block * cache_s0 + here % BLOCK_SIZE * cache_s1 + head * cache_s2)[:, None] + dim[None, :]
            if HEAD_DIM == DIM_BLOCK:
                key, value = tl.load(key_ptr + at), tl.load(value_ptr + at)
            else:
                key = tl.load(key_ptr + at, mask=dim_inside[None, :], other=0.0)
                value = tl.load(value_ptr + at, mask=dim_inside[None, :], other=0.0)
            score = tl.where(inside, tl.sum(query[None, :] * key.to(tl.float32), axis=1), -1e30)
            new_best = tl.maximum(best, score)
            weight = tl.where(inside, tl.exp2(score - new_best), 0.0)
            shrink = tl.exp2(best - new_best)
            total = total * shrink + weight
            mix = mix * shrink[:, None] + weight[:, None] * value.to(tl.float32)
            best = new_best
        best_lane = tl.max(best, axis=0)
        share = tl.exp2(best - best_lane)
        sum_all = tl.sum(total * share, axis=0)
        mixed = tl.sum(mix * share[:, None], axis=0) / tl.maximum(sum_all, 1e-30)
        row = seq.to(tl.int64) * num_heads + head
        if parts <= 1:
            _store_head(mixed, row, dim, dim_inside, out_ptr, out_scale_ptr, HEAD_DIM, ROUNDS, FIXED)
        else:
            own_at = piece.to(tl.int64) * num_heads + head
            tl.store(part_ptr + own_at * HEAD_DIM + dim, mixed, mask=dim_inside)
            part_scale = tl.where(sum_all > 0, best_lane + tl.log2(tl.maximum(sum_all, 1e-30)), -1e30)
            tl.store(part_scale_ptr + own_at, part_scale)
            tl.debug_barrier()  # all threads have stored before one of them says so
            if tl.atomic_add(arrival_ptr + row, 1, sem="acq_rel") == parts - 1:
                tl.debug_barrier()
                at_once = tl.arange(0, MERGED)
                best_part, sum_parts, merged = -1e30, 0.0, tl.zeros([DIM_BLOCK], tl.float32)
                for first_part in tl.range(0, parts, MERGED):
                    index = first_part + at_once
                    inside = index < parts
                    part_at = tl.where(index == 0, seq, further + index - 1).to(tl.int64) * num_heads + head
                    part_scales = tl.load(part_scale_ptr + part_at, mask=inside, other=-1e30, cache_modifier=".cg")
                    part_mask = inside[:, None] & dim_inside[None, :]
                    mixes = tl.load(part_ptr + part_at[:, None] * HEAD_DIM + dim[None, :], mask=part_mask, other=0.0, cache_modifier=".cg")
                    new_best_part = tl.maximum(best_part, tl.max(part_scales, axis=0))
                    weights = tl.where(inside, tl.exp2(part_scales - new_best_part), 0.0)
                    shrink_parts = tl.exp2(best_part - new_best_part)
                    merged = merged * shrink_parts + tl.sum(mixes * weights[:, None], axis=0)
                    sum_parts = sum_parts * shrink_parts + tl.sum(weights, axis=0)
                    best_part = new_best_part
                merged /= sum_parts
                _store_head(merged, row, dim, dim_inside, out_ptr, out_scale_ptr, HEAD_DIM, ROUNDS, FIXED)
                tl.store(arrival_ptr + row, 0)
        piece = next_piece


@triton.jit
def _store_head(mixed, row, dim, dim_inside, out_ptr, out_scale_ptr, HEAD_DIM: tl.constexpr, ROUNDS: tl.constexpr, FIXED: tl.constexpr):
    if FIXED:
        mixed = levels_of(mixed, out_scale_ptr)
    elif ROUNDS:
        scale = tl.maximum(tl.max(tl.abs(mixed), axis=0) / 448.0, 1e-12)
        tl.store(out_scale_ptr + row, scale)
        mixed = tl.minimum(tl.maximum(mixed / scale, -448.0), 448.0)  # the quotient may be a rounding error larger
    tl.store(out_ptr + row * HEAD_DIM + dim, mixed.to(out_ptr.dtype.element_ty), mask=dim_inside)


@triton.jit
def _turned(
    row_at, first, dim, other, dim_inside, cos, sin, row_scale, column_scale_ptr, bias_ptr, FINISHES: tl.constexpr
):  # fmt: skip
    """A head's rotated numbers, rounded to the activations' dtype as the separate kernel rounds them; `sin` carries the sign."""
    here = _numbers(row_at, first + dim, dim_inside, row_scale, column_scale_ptr, bias_ptr, FINISHES)
    there = _numbers(row_at, first + other, dim_inside, row_scale, column_scale_ptr, bias_ptr, FINISHES)
    turned = here.to(tl.float32) * cos + there.to(tl.float32) * sin
    return turned.to(here.dtype).to(tl.float32)


@triton.jit
def _numbers(row_at, column, inside, row_scale, column_scale_ptr, bias_ptr, FINISHES: tl.constexpr):
    """Numbers of q|k|v in the activations' dtype."""
    number = tl.load(row_at + column, mask=inside, other=0.0)
    if FINISHES:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
        scale = row_scale * tl.load(column_scale_ptr + column, mask=inside, other=0.0)
        number = (number.to(tl.float32) * scale + bias.to(tl.float32)).to(bias.dtype)
    return number
