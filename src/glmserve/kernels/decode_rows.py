"""The two ends of a decode step: the packed rows that the host sent become the step's inputs, and what was sampled becomes the next step's.

One kernel each, where a dozen small ones of torch would cost as much as a whole layer's attention.

The inputs include how attention shares the step's keys among its programs: a sequence that is long among the others is read in several
parts, so that all programs have about as much to do.  It is decided here once, and not by each program of each layer.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from glmserve.kernels.backend import next_power_of_2, tl, triton, use_triton

TOKEN_ID, ROW, POSITION, SECOND_POSITION, SLOT, SEQ_LEN, NUM_FIELDS = range(7)  # columns of a packed row; the block table follows
MOST_PARTS = 16  # of a sequence
_MOST_MORE_PARTS, _MOST_ROWS_IN_PARTS = 64, 128  # powers of two
_BLOCK = 128


class Sharing(NamedTuple):
    """How a step's keys are shared among the programs of a head.

    more_parts: so many more parts than sequences, at most MOST_PARTS a sequence; they go to what a sequence has beyond `free_means` times
    the mean length, in proportion.
    """

    more_parts: int
    free_means: int


def sharing_for(num_seqs: int, num_heads: int, key_bytes: int) -> Sharing:
    """For so many sequences, with keys of `key_bytes` a number.  All measured on an H200 (benchmarks/RESULTS.md).

    Few sequences do not keep the memory busy and are all read in parts, the more of them the fewer bytes a key has.  Of many only those
    are that are long among the others.  Parts that nobody needs are then programs with nothing to do, and where they are many and not all
    places are taken, the GPU gives a few multiprocessors half as much again of the other programs.
    """
    wanted, places = 2048 // (num_heads * key_bytes), 2048 // num_heads
    if num_seqs > _MOST_ROWS_IN_PARTS:
        return Sharing(0, 0)
    if 2 * num_seqs <= wanted:
        return Sharing(min(wanted - num_seqs, num_seqs * (MOST_PARTS - 1), _MOST_MORE_PARTS), 0)
    return Sharing(8 if num_seqs < places else 32, 2)


class DecodeRows(NamedTuple):
    """token_ids, slots: int64 [rows]; cos, sin: float32 [rows, axes, pairs]; seq_lens: int32 [rows].

    parts: what `full_heads_decode` takes, for which there are kernels; else None.
    """

    token_ids: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    seq_lens: torch.Tensor
    parts: torch.Tensor | None


def unpack_rows(
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, sharing: Sharing
) -> DecodeRows:
    """What the packed rows say.

    packed: int32 [rows, NUM_FIELDS + blocks]; a token id of -1 stands for last_token_ids (int64) at the row's persistent place;
    cos, sin: float32 [positions, pairs], the tables; `axes` positions a token are looked up in them.
    """
    if not use_triton(packed):
        return unpack_rows_torch(packed, last_token_ids, cos, sin, axes)
    return unpack_rows_triton(packed, last_token_ids, cos, sin, axes, sharing)


def unpack_rows_torch(packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int) -> DecodeRows:
    """The plain twin of `unpack_rows`."""
    token_ids = torch.where(packed[:, TOKEN_ID] >= 0, packed[:, TOKEN_ID], last_token_ids[packed[:, ROW]])
    positions = packed[:, POSITION : POSITION + axes].contiguous()  # the result takes the order of its index, and kernels read it densely
    return DecodeRows(token_ids, cos[positions], sin[positions], packed[:, SLOT].long(), packed[:, SEQ_LEN].contiguous(), None)


def unpack_rows_triton(
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, sharing: Sharing
) -> DecodeRows:
    """The Triton path of `unpack_rows`: a program a row, and one that shares the keys."""
    rows, pairs = packed.shape[0], cos.shape[1]
    out = DecodeRows(
        last_token_ids.new_empty(rows),
        cos.new_empty((rows, axes, pairs)),
        sin.new_empty((rows, axes, pairs)),
        last_token_ids.new_empty(rows),
        packed.new_empty(rows),
        packed.new_empty(rows + sharing.more_parts),
    )
    _unpack_rows_kernel[(rows + 1 if sharing.more_parts else rows,)](
        packed, last_token_ids, cos, sin, *out, packed.stride(0), rows, *sharing,
        AXES=axes, PAIRS=pairs, BLOCK=next_power_of_2(axes * pairs),
        ROWS=_MOST_ROWS_IN_PARTS, MORE_PARTS=_MOST_MORE_PARTS, MOST_PARTS=MOST_PARTS, num_warps=1,
    )  # fmt: skip
    return out


def parts_torch(seq_lens: torch.Tensor, sharing: Sharing, most_parts: int = MOST_PARTS) -> torch.Tensor:
    """The plain twin of the sharing in `unpack_rows`: int32 [rows + more_parts], sequence * 65536 + part * 256 + parts of that sequence.

    First the first part of each sequence, then the further ones in order, then -1.  seq_lens: int32 [rows].
    """
    lens, more_parts = seq_lens.tolist(), sharing.more_parts
    free = sharing.free_means * sum(lens) // len(lens)
    upto = [0, *itertools.accumulate(max(seq_len - free, 0) for seq_len in lens)]
    shares = [count * more_parts // max(upto[-1], 1) for count in upto]
    told = [1 + min(end - start, most_parts - 1) for start, end in itertools.pairwise(shares)]
    first = [row << 16 | parts for row, parts in enumerate(told)]
    further = [row << 16 | part << 8 | parts for row, parts in enumerate(told) for part in range(1, parts)]
    listed = [*first, *further, *[-1] * (more_parts - len(further))]
    return torch.tensor(listed, dtype=torch.int32, device=seq_lens.device)


def remember_ids(packed: torch.Tensor, token_ids: torch.Tensor, last_token_ids: torch.Tensor) -> None:
    """Write each row's sampled id to its persistent place.

    token_ids: int64 [rows], the first rows of `packed`.  -1, which ends a request, becomes 0: one more step may be on its way with it,
    and any real id will do.
    """
    if not use_triton(packed):
        last_token_ids[packed[: token_ids.shape[0], ROW]] = token_ids.clamp(min=0)
    else:
        remember_ids_triton(packed, token_ids, last_token_ids)


def remember_ids_triton(packed: torch.Tensor, token_ids: torch.Tensor, last_token_ids: torch.Tensor) -> None:
    """The Triton path of `remember_ids`."""
    rows = token_ids.shape[0]
    _remember_ids_kernel[(triton.cdiv(rows, _BLOCK),)](packed, token_ids, last_token_ids, packed.stride(0), rows, BLOCK=_BLOCK, num_warps=1)


@triton.jit(do_not_specialize=["rows", "more_parts", "free_means"])
def _unpack_rows_kernel(
    packed_ptr, last_ptr, cos_table_ptr, sin_table_ptr, token_ptr, cos_ptr, sin_ptr, slot_ptr, seq_len_ptr, parts_ptr, stride,
    rows, more_parts, free_means,
    AXES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, MORE_PARTS: tl.constexpr, MOST_PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row == rows:
        _share(packed_ptr, parts_ptr, stride, rows, more_parts, free_means, ROWS, MORE_PARTS, MOST_PARTS)
        return
    lane = tl.arange(0, BLOCK)
    at = packed_ptr + row.to(tl.int64) * stride
    token_id = tl.load(at).to(tl.int64)
    if token_id < 0:
        token_id = tl.load(last_ptr + tl.load(at + 1))
    tl.store(token_ptr + row, token_id)
    tl.store(slot_ptr + row, tl.load(at + 4).to(tl.int64))
    tl.store(seq_len_ptr + row, tl.load(at + 5))
    inside = lane < AXES * PAIRS
    position = tl.load(at + 2 + lane // PAIRS, mask=inside, other=0)
    angle = position * PAIRS + lane % PAIRS
    tl.store(cos_ptr + row * AXES * PAIRS + lane, tl.load(cos_table_ptr + angle, mask=inside, other=0.0), mask=inside)
    tl.store(sin_ptr + row * AXES * PAIRS + lane, tl.load(sin_table_ptr + angle, mask=inside, other=0.0), mask=inside)


@triton.jit
def _share(
    packed_ptr, parts_ptr, stride, rows, more_parts, free_means,
    ROWS: tl.constexpr, MORE_PARTS: tl.constexpr, MOST_PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    there = row < rows
    seq_len = tl.load(packed_ptr + row.to(tl.int64) * stride + 5, mask=there, other=0)
    counts = tl.maximum(seq_len - free_means * tl.sum(seq_len, axis=0) // rows, 0)
    upto, all = tl.cumsum(counts, axis=0), tl.maximum(tl.sum(counts, axis=0), 1)
    more = tl.minimum(upto * more_parts // all - (upto - counts) * more_parts // all, MOST_PARTS - 1)
    tl.store(parts_ptr + row, row << 16 | more + 1, mask=there)
    used = tl.cumsum(more, axis=0)
    further_ptr = parts_ptr + rows + used - more - 1
    for part in range(1, MOST_PARTS):
        tl.store(further_ptr + part, row << 16 | part << 8 | more + 1, mask=part <= more)
    rest = tl.arange(0, MORE_PARTS)
    tl.store(parts_ptr + rows + rest, -1, mask=(rest >= tl.sum(more, axis=0)) & (rest < more_parts))


@triton.jit(do_not_specialize=["rows"])
def _remember_ids_kernel(packed_ptr, token_ptr, last_ptr, stride, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    place = tl.load(packed_ptr + row.to(tl.int64) * stride + 1, mask=inside, other=0)
    tl.store(last_ptr + place, tl.maximum(tl.load(token_ptr + row, mask=inside, other=0), 0), mask=inside)
