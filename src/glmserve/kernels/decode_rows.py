"""The two ends of a decode step: the packed rows that the host sent become the step's inputs, and what was sampled becomes the next step's.

One kernel each, where a dozen small ones of torch would cost as much as a whole layer's attention.

The inputs include how attention's keys are shared among its programs, in pieces: a long sequence is read in several parts.  It is decided
here once, and not by each program of each layer.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from glmserve.kernels.backend import next_power_of_2, tl, triton, use_triton

TOKEN_ID, ROW, POSITION, SECOND_POSITION, SLOT, SEQ_LEN, NUM_FIELDS = range(7)  # columns of a packed row; the block table follows
SEQUENCE, START, STOP, PARTS, FURTHER, NEXT, NUM_PIECE_FIELDS = range(7)  # columns of a piece
MOST_PARTS = 16  # of a sequence
KEYS = 8  # that `full_heads_decode` reads at once; a part begins at a multiple of it
_MOST_PROGRAMS_OF_FEW = 256  # a head
_MOST_SHARED_IN_FP8 = 128  # sequences
_BLOCK = 128


class Pieces(NamedTuple):
    """Who reads which keys in a decode step.  So many programs a head begin, each with the piece of its number.

    table: int32 [pieces, NUM_PIECE_FIELDS].  A piece is the older keys from START to STOP of a SEQUENCE, one of its PARTS; those after the
    sequence's first are pieces FURTHER, FURTHER + 1 and so on.  Its program then takes the piece NEXT, or ends where that is -1.  The first
    pieces are the first parts of all sequences, in order, with no parts where a row is unused; any other piece with no parts is nobody's.
    Without pieces a program reads a whole sequence.
    """

    table: torch.Tensor
    num_programs: int


def num_more_programs(num_seqs: int, num_heads: int, key_bytes: int) -> int | None:
    """How many programs a head shall begin beyond one a sequence, with keys of `key_bytes` a number; None: and each reads a whole one.

    Few sequences do not keep the memory busy, so all are read in parts by more programs, the more the fewer bytes a key has.  Many do;
    there the programs of short sequences help with long ones when they have done.  More programs than are needed would do harm: those
    that find nothing have the GPU give some multiprocessors half as many again of the others.  With keys in fp8, and programs in several
    waves, being ready to help costs 4% of a step of equal lengths; beyond 128 sequences they are not.  (Measured on an H200,
    benchmarks/RESULTS.md.)
    """
    if key_bytes == 1 and num_seqs > _MOST_SHARED_IN_FP8:
        return None
    wanted = min(2048 // (num_heads * key_bytes), _MOST_PROGRAMS_OF_FEW)
    return min(wanted - num_seqs, num_seqs * (MOST_PARTS - 1)) if 2 * num_seqs <= wanted else 0


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
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, more_programs: int | None
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
    packed: torch.Tensor, last_token_ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axes: int, more_programs: int | None
) -> DecodeRows:
    """The Triton path of `unpack_rows`: a program a row, and one that shares the keys."""
    rows, pairs = packed.shape[0], cos.shape[1]
    num_pieces = 0 if more_programs is None else rows + (more_programs or rows)
    pieces = Pieces(packed.new_empty((num_pieces, NUM_PIECE_FIELDS)), rows + (more_programs or 0))
    out = DecodeRows(
        last_token_ids.new_empty(rows),
        cos.new_empty((rows, axes, pairs)),
        sin.new_empty((rows, axes, pairs)),
        last_token_ids.new_empty(rows),
        packed.new_empty(rows),
        pieces,
    )
    most_pieces = max(2 * last_token_ids.shape[0], _MOST_PROGRAMS_OF_FEW)  # of any step: Triton compiles for few and for many, no more
    _unpack_rows_kernel[(rows + 1 if num_pieces else rows,)](
        packed, last_token_ids, cos, sin, *out[:-1], pieces.table, packed.stride(0), rows, more_programs or 0,
        AXES=axes, PAIRS=pairs, BLOCK=next_power_of_2(axes * pairs),
        PIECES=_BLOCK if num_pieces <= _BLOCK else next_power_of_2(most_pieces), MOST_PARTS=MOST_PARTS, KEYS=KEYS,
        FIELDS=NUM_PIECE_FIELDS, num_warps=4,
    )  # fmt: skip
    return out


def pieces_torch(seq_lens: torch.Tensor, more_programs: int | None, most_parts: int = MOST_PARTS) -> Pieces:
    """The plain twin of the sharing in `unpack_rows`.  seq_lens: int32 [rows].

    With more programs than sequences these go to the sequences in proportion to their lengths.  Else a sequence is long that has more than
    one and a half times the mean; the programs of those with no more than the mean help, in proportion to what is beyond it.
    """
    lens, rows = seq_lens.tolist(), len(seq_lens)
    if more_programs is None:
        return Pieces(seq_lens.new_empty((0, NUM_PIECE_FIELDS)), rows)
    if more_programs:
        helpers, counts = list(range(rows, rows + more_programs)), lens
    else:
        mean = sum(lens) // max(1, sum(seq_len > 0 for seq_len in lens))
        helpers = [row for row, seq_len in enumerate(lens) if seq_len <= mean]
        counts = [seq_len - mean if 2 * seq_len > 3 * mean else 0 for seq_len in lens]
    upto = [0, *itertools.accumulate(counts)]
    shares = [count * len(helpers) // max(upto[-1], 1) for count in upto]
    more = [min(end - start, most_parts - 1) for start, end in itertools.pairwise(shares)]
    further = list(itertools.accumulate(more, initial=rows))
    firsts, others = [], []
    for row, seq_len in enumerate(lens):
        old = max(seq_len - 1, 0)
        width = -(-old // (more[row] + 1) // KEYS) * KEYS
        parts = [
            [row, part * width, min(part * width + width, old), more[row] + 1 if seq_len else 0, further[row], -1]
            for part in range(more[row] + 1)
        ]
        firsts.append(parts[0])
        others += parts[1:]
    if not more_programs:
        for number, helper in enumerate(helpers[: len(others)]):
            firsts[helper][NEXT] = rows + number
    nobodys = [[0, 0, 0, 0, 0, -1]] * ((more_programs or rows) - len(others))
    return Pieces(torch.tensor([*firsts, *others, *nobodys], dtype=torch.int32, device=seq_lens.device), rows + more_programs)


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


@triton.jit(do_not_specialize=["rows", "more_programs"])
def _unpack_rows_kernel(
    packed_ptr, last_ptr, cos_table_ptr, sin_table_ptr, token_ptr, cos_ptr, sin_ptr, slot_ptr, seq_len_ptr, piece_ptr, stride,
    rows, more_programs,
    AXES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, MOST_PARTS: tl.constexpr, KEYS: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row == rows:
        _share(packed_ptr, piece_ptr, stride, rows, more_programs, PIECES, MOST_PARTS, KEYS, FIELDS)
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
    packed_ptr, piece_ptr, stride, rows, more_programs, PIECES: tl.constexpr, MOST_PARTS: tl.constexpr,
    KEYS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, PIECES)
    there = row < rows
    seq_len = tl.load(packed_ptr + row.to(tl.int64) * stride + 5, mask=there, other=0)
    mean = tl.sum(seq_len, axis=0) // tl.maximum(tl.sum((seq_len > 0).to(tl.int32), axis=0), 1)
    if more_programs > 0:
        counts, num_helpers = seq_len, more_programs
        helps = row < 0
    else:
        counts = tl.where(2 * seq_len > 3 * mean, seq_len - mean, 0)
        helps = there & (seq_len <= mean)
        num_helpers = tl.sum(helps.to(tl.int32), axis=0)
    upto, total = tl.cumsum(counts.to(tl.int64), axis=0), tl.maximum(tl.sum(counts, axis=0), 1)
    share = (upto * num_helpers // total - (upto - counts) * num_helpers // total).to(tl.int32)
    more = tl.minimum(share, MOST_PARTS - 1)
    further = rows + tl.cumsum(more, axis=0) - more
    used = rows + tl.sum(more, axis=0)
    its_help = rows + tl.cumsum(helps.to(tl.int32), axis=0) - 1
    old = tl.maximum(seq_len - 1, 0)
    width = tl.cdiv(tl.cdiv(old, more + 1), KEYS) * KEYS
    parts = tl.where(seq_len > 0, more + 1, 0)
    following = tl.where(helps & (its_help < used), its_help, -1)
    _store_piece(piece_ptr + row * FIELDS, row, 0, tl.minimum(width, old), parts, further, following, there)
    for part in range(1, tl.max(more, axis=0) + 1):
        stop = tl.minimum(part * width + width, old)
        _store_piece(piece_ptr + (further + part - 1) * FIELDS, row, part * width, stop, parts, further, -1, part <= more)
    nobodys = (row >= used) & (row < rows + tl.where(more_programs > 0, more_programs, rows))
    _store_piece(piece_ptr + row * FIELDS, 0, 0, 0, 0, 0, -1, nobodys)


@triton.jit
def _store_piece(at, sequence, start, stop, parts, further, following, mask):
    tl.store(at, sequence, mask=mask)
    tl.store(at + 1, start, mask=mask)
    tl.store(at + 2, stop, mask=mask)
    tl.store(at + 3, parts, mask=mask)
    tl.store(at + 4, further, mask=mask)
    tl.store(at + 5, following, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _remember_ids_kernel(packed_ptr, token_ptr, last_ptr, stride, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    place = tl.load(packed_ptr + row.to(tl.int64) * stride + 1, mask=inside, other=0)
    tl.store(last_ptr + place, tl.maximum(tl.load(token_ptr + row, mask=inside, other=0), 0), mask=inside)
