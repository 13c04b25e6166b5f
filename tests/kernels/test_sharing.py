"""How a decode step's keys are shared among programs: each sequence is read whole, once, and in fair parts."""

from __future__ import annotations

import random

import pytest
import torch

from glmserve.kernels.decode_rows import MOST_PARTS, Sharing, parts_torch, sharing_for


def shares(lens: list[int], sharing: Sharing) -> list[int]:
    """How many parts each sequence has, after a look at the list as `full_heads_decode` reads it."""
    listed = parts_torch(torch.tensor(lens, dtype=torch.int32), sharing).tolist()
    assert len(listed) == len(lens) + sharing.more_parts
    told = [(entry >> 16, entry >> 8 & 255, entry & 255) for entry in listed if entry >= 0]
    counts = [next(parts for row, _, parts in told if row == wanted) for wanted in range(len(lens))]
    assert sorted(told) == [(row, part, parts) for row, parts in enumerate(counts) for part in range(parts)]
    assert max(counts) <= MOST_PARTS
    return counts


@pytest.mark.parametrize("key_bytes", [1, 2, 4])
def test_each_part_is_somebodys_whatever_the_lengths(key_bytes: int) -> None:
    rng = random.Random(key_bytes)
    for rows in (1, 2, 3, 7, 16, 31, 32, 33, 63, 64, 100, 128):
        for lens in ([0] * rows, [1] * rows, [2048] * rows, rng.choices(range(2049), k=rows), [2048] + [1] * (rows - 1)):
            shares(lens, sharing_for(rows, 32, key_bytes))


def test_few_sequences_are_read_in_parts_by_their_length() -> None:
    assert shares([1900], sharing_for(1, 32, 2)) == [16]
    assert shares([256] * 8, sharing_for(8, 32, 2)) == [4] * 8
    assert shares([256] * 8, sharing_for(8, 32, 1)) == [8] * 8
    assert shares([100, 1000, 100, 100], sharing_for(4, 32, 2))[1] == 16


def test_of_many_only_the_long_are() -> None:
    assert shares([256] * 64, sharing_for(64, 32, 2)) == [1] * 64
    assert shares([500, *[256] * 63], sharing_for(64, 32, 2)) == [1] * 64
    counts = shares([*[1900] * 4, *[200] * 60], sharing_for(64, 32, 2))
    assert counts[4:] == [1] * 60 and min(counts[:4]) == max(counts[:4]) == 9


def test_so_many_that_none_needs_parts() -> None:
    assert sharing_for(129, 32, 2) == Sharing(0, 0)
    assert parts_torch(torch.tensor([7, 0], dtype=torch.int32), Sharing(0, 0)).tolist() == [1, 1 << 16 | 1]
