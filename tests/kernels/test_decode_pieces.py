"""How a decode step's keys are shared among programs: each sequence is read whole, once, and in fair parts."""

from __future__ import annotations

import random

import torch

from glmserve.kernels.decode_pieces import MOST_PARTS, num_more_programs, pieces_torch


def loads(lens: list[int], more_programs: int) -> tuple[list[int], list[int]]:
    """(parts of each sequence, tokens that each program reads), found as the programs of `full_heads_decode` go about it."""
    pieces = pieces_torch(torch.tensor(lens, dtype=torch.int32), more_programs)
    table = pieces.table.tolist()
    assert pieces.num_programs == len(lens) + more_programs
    read: dict[int, list[tuple[int, int, int]]] = {row: [] for row in range(len(lens))}
    tokens = []
    for piece in range(pieces.num_programs):
        tokens.append(0)
        while piece >= 0:
            row, start, stop, parts, further, following = table[piece]
            if piece < len(lens) or parts:
                assert row == piece or piece >= len(lens)
                assert table[row][3:5] == [parts, further]
                number = 0 if piece < len(lens) else piece - further + 1  # where the others look for what it made
                read[row].append((start, stop, number))
                tokens[-1] += stop - start
            piece = following
    for row, seq_len in enumerate(lens):
        counts = table[row][3]
        assert counts <= MOST_PARTS and (counts > 0) == (seq_len > 0)
        keys = [key for start, stop, _ in sorted(read[row]) for key in range(start, stop)]
        assert keys == list(range(max(seq_len - 1, 0)))
        assert sorted(number for _, _, number in read[row]) == list(range(max(counts, 1)))
    return [table[row][3] for row in range(len(lens))], tokens


def test_each_part_is_read_once_whatever_the_lengths() -> None:
    rng = random.Random(1)
    for rows in (1, 2, 3, 7, 16, 31, 32, 33, 63, 64, 100, 128, 300):
        for lens in ([0] * rows, [1] * rows, [2048] * rows, rng.choices(range(2049), k=rows), [2048] + [1] * (rows - 1)):
            for more in {num_more_programs(rows, heads, key_bytes) for heads in (2, 32) for key_bytes in (1, 2, 4)} | {0}:
                loads(lens, more)


def test_few_sequences_are_read_in_parts_by_their_length() -> None:
    assert loads([1900], num_more_programs(1, 32, 2))[0] == [32]
    assert loads([1900] * 2, num_more_programs(2, 32, 1))[0] == [16] * 2
    assert loads([256] * 8, num_more_programs(8, 32, 2))[0] == [4] * 8
    assert loads([256] * 8, num_more_programs(8, 32, 1))[0] == [8] * 8
    assert loads([100, 1000, 100, 100], num_more_programs(4, 32, 2))[0][1] == 22


def test_of_many_only_the_long_are_and_the_programs_of_the_short_help() -> None:
    for rows in (17, 32, 64, 200):
        assert not num_more_programs(rows, 32, 2)
        assert loads([256] * rows, 0)[0] == [1] * rows
        assert loads([*[256] * (rows - 1), 300], 0)[0] == [1] * rows
        lens = [*[200] * (rows - rows // 16), *[1900] * (rows // 16)]
        counts, tokens = loads(lens, 0)
        assert counts[: rows - rows // 16] == [1] * (rows - rows // 16)
        assert max(tokens) < 1.5 * sum(lens) / rows
