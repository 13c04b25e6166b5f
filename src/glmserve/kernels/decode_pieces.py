"""How a decode step's keys are shared among the programs of attention: a long sequence is read in several parts.

It is decided once a step, while its rows are unpacked, and not by each program of each layer (docs/decisions/short-sequences-help.md).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from glmserve.kernels.backend import tl, triton

SEQUENCE, START, STOP, PARTS, FURTHER, NEXT, NUM_PIECE_FIELDS = range(7)  # columns of a piece
MOST_PARTS = 32  # of a sequence
MOST_PARTS_OF_SEVERAL = 16  # on average, where there is more than one
KEYS = 8  # that `full_heads_decode` reads at once; a part begins at a multiple of it
MOST_PROGRAMS_OF_FEW = 256  # a head


class Pieces(NamedTuple):
    """Who reads which keys in a decode step.  So many programs a head begin, each with the piece of its number.

    table: int32 [pieces, NUM_PIECE_FIELDS].  A piece is the older keys from START to STOP of a SEQUENCE, one of its PARTS; those after the
    sequence's first are pieces FURTHER, FURTHER + 1 and so on.  Its program then takes the piece NEXT, or ends where that is -1.  The first
    pieces are the first parts of all sequences, in order, with no parts where a row is unused; any other piece with no parts is nobody's.
    """

    table: torch.Tensor
    num_programs: int


def num_more_programs(num_seqs: int, num_heads: int, key_bytes: int) -> int:
    """How many programs a head shall begin beyond one a sequence, with keys of `key_bytes` a number.

    Few sequences do not keep the memory busy, so all are read in parts by more programs, the more the fewer bytes a key has.  Many do;
    there the programs of short sequences help with long ones when they have done.  More programs than are needed would do harm: those
    that find nothing have the GPU give some multiprocessors half as many again of the others.  A lone sequence is read in more parts than
    each of several, to whom more bring nothing.  (Measured on an H200, benchmarks/RESULTS.md.)
    """
    wanted = min(2048 // (num_heads * key_bytes), MOST_PROGRAMS_OF_FEW)
    parts = MOST_PARTS if num_seqs == 1 else MOST_PARTS_OF_SEVERAL
    return min(wanted, num_seqs * parts) - num_seqs if 2 * num_seqs <= wanted else 0


def empty_pieces(num_seqs: int, more_programs: int, device: torch.device) -> Pieces:
    """Room for the pieces of so many sequences, to be filled by `share_keys`."""
    num_pieces = num_seqs + (more_programs or num_seqs)
    return Pieces(torch.empty((num_pieces, NUM_PIECE_FIELDS), dtype=torch.int32, device=device), num_seqs + more_programs)


def pieces_torch(seq_lens: torch.Tensor, more_programs: int, most_parts: int = MOST_PARTS) -> Pieces:
    """Who reads which keys of sequences of these lengths.  seq_lens: int32 [rows].

    With more programs than sequences these go to the sequences in proportion to their lengths.  Else a sequence is long that has more than
    one and a half times the mean; the programs of those with no more than the mean help, in proportion to what is beyond it.
    """
    lens, rows = seq_lens.tolist(), len(seq_lens)
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


@triton.jit
def share_keys(
    seq_len_ptr, piece_ptr, stride, rows, more_programs, PIECES: tl.constexpr, MOST_PARTS: tl.constexpr,
    KEYS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """The Triton path of `pieces_torch`, by one program: of a length every `stride` numbers.  PIECES: no fewer than there are."""
    row = tl.arange(0, PIECES)
    there = row < rows
    seq_len = tl.load(seq_len_ptr + row.to(tl.int64) * stride, mask=there, other=0)
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
