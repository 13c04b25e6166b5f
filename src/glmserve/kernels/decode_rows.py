"""The two ends of a decode step: the packed rows that the host sent become the step's inputs, and what was sampled becomes the next step's.

One kernel each, where a dozen small ones of torch would cost as much as a whole layer's attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton
from glmserve.kernels.decode_pieces import KEYS, MOST_PARTS, MOST_PROGRAMS_OF_FEW, NUM_PIECE_FIELDS, Pieces, empty_pieces, share_keys

TOKEN_ID, ROW, POSITION, SECOND_POSITION, SLOT, SEQ_LEN, NUM_FIELDS = range(7)  # columns of a packed row; the block table follows
_BLOCK = 128


class DecodeRows(NamedTuple):
    """token_ids, slots: int64 [rows]; cos, sin: float32 [rows, axes, pairs]; seq_lens: int32 [rows].

    pieces: where there are kernels that want them.
    """

    token_ids: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    seq_lens: torch.Tensor
    pieces: Pieces | None


def unpack_rows(
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, more_programs: int
) -> DecodeRows:
    """What the packed rows say.

    packed: int32 [rows, NUM_FIELDS + blocks]; a token id of -1 stands for last_token_ids (int64) at the row's persistent place;
    cos, sin: float32 [positions, pairs], the tables; `axes` positions a token are looked up in them; more_programs: of `num_more_programs`.
    """
    if not use_triton(packed):
        return unpack_rows_torch(packed, last_token_ids, cos, sin, axes)
    return unpack_rows_triton(packed, last_token_ids, cos, sin, axes, more_programs)


def unpack_rows_torch(packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int) -> DecodeRows:
    """The plain twin of `unpack_rows`."""
    token_ids = torch.where(packed[:, TOKEN_ID] >= 0, packed[:, TOKEN_ID], last_token_ids[packed[:, ROW]])
    positions = packed[:, POSITION : POSITION + axes].contiguous()  # the result takes the order of its index, and kernels read it densely
    return DecodeRows(token_ids, cos[positions], sin[positions], packed[:, SLOT].long(), packed[:, SEQ_LEN].contiguous(), None)


def unpack_rows_triton(
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, more_programs: int
) -> DecodeRows:
    """The Triton path of `unpack_rows`: a program a row, and one that shares the keys."""
    rows, pairs = packed.shape[0], cos.shape[1]
    pieces = empty_pieces(rows, more_programs, packed.device)
    num_pieces = len(pieces.table)
    out = DecodeRows(
        last_token_ids.new_empty(rows),
        cos.new_empty((rows, axes, pairs)),
        sin.new_empty((rows, axes, pairs)),
        last_token_ids.new_empty(rows),
        packed.new_empty(rows),
        pieces,
    )
    most_pieces = max(2 * last_token_ids.shape[0], MOST_PROGRAMS_OF_FEW)  # of any step: Triton compiles for few and for many, no more
    _unpack_rows_kernel[(rows + 1,)](
        packed, last_token_ids, cos, sin, *out[:-1], pieces.table, packed.stride(0), rows, more_programs,
        AXES=axes, PAIRS=pairs, BLOCK=next_power_of_2(axes * pairs),
        PIECES=_BLOCK if num_pieces <= _BLOCK else next_power_of_2(most_pieces), MOST_PARTS=MOST_PARTS, KEYS=KEYS,
        FIELDS=NUM_PIECE_FIELDS, num_warps=4,
    )  # fmt: skip
    return out


def remember_ids(packed: torch.Tensor, token_ids: torch.Tensor, last_token_ids: torch.Tensor, for_host: torch.Tensor) -> None:
    """Write each row's sampled id to its persistent place, and as it is to `for_host`.

    token_ids: int64 [rows], the first rows of `packed`; for_host: int64 [rows], on a GPU in pinned memory, which a kernel can write: so
    there is no copy to wait for.  -1, which ends a request, becomes 0 in its place: one more step may be on its way with it, and any real
    id will do.
    """
    if use_triton(packed):
        return remember_ids_triton(packed, token_ids, last_token_ids, for_host)
    last_token_ids[packed[: token_ids.shape[0], ROW]] = token_ids.clamp(min=0)
    for_host.copy_(token_ids, non_blocking=True)


def remember_ids_triton(packed: torch.Tensor, token_ids: torch.Tensor, last_token_ids: torch.Tensor, for_host: torch.Tensor) -> None:
    """The Triton path of `remember_ids`."""
    rows = token_ids.shape[0]
    _remember_ids_kernel[(triton.cdiv(rows, _BLOCK),)](
        packed, token_ids, last_token_ids, for_host, packed.stride(0), rows, BLOCK=_BLOCK, num_warps=1, **early_start(token_ids)
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "more_programs"])
def _unpack_rows_kernel(
    packed_ptr, last_ptr, cos_table_ptr, sin_table_ptr, token_ptr, cos_ptr, sin_ptr, slot_ptr, seq_len_ptr, piece_ptr, stride,
    rows, more_programs,
    AXES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, MOST_PARTS: tl.constexpr, KEYS: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row == rows:
        share_keys(packed_ptr + 5, piece_ptr, stride, rows, more_programs, PIECES, MOST_PARTS, KEYS, FIELDS)
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


@triton.jit(do_not_specialize=["rows"])
def _remember_ids_kernel(packed_ptr, token_ptr, last_ptr, host_ptr, stride, rows, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    place = tl.load(packed_ptr + row.to(tl.int64) * stride + 1, mask=inside, other=0)
    token_id = tl.load(token_ptr + row, mask=inside, other=0)
    tl.store(last_ptr + place, tl.maximum(token_id, 0), mask=inside)
    tl.store(host_ptr + row, token_id, mask=inside)
