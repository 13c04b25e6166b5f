"""Blocks are handed out once, found again while nobody needs them, and forgotten when somebody does."""

from __future__ import annotations

import pytest

from glmserve.scheduler.block_pool import NULL_BLOCK, BlockPool


def test_all_but_the_null_block_are_handed_out_once():
    pool = BlockPool(6)
    assert pool.allocate(6) is None and pool.num_free == 5, "nothing is taken where not all fit"
    blocks = pool.allocate(5)
    assert sorted(blocks) == [1, 2, 3, 4, 5] and NULL_BLOCK not in blocks
    assert pool.allocate(1) is None
    assert pool.usage == 1.0
    pool.release(blocks)
    assert pool.num_free == 5 and pool.usage == 0.0


def test_a_pool_of_one_block_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(1)


def test_a_freed_block_is_found_until_it_is_needed():
    pool = BlockPool(4)
    [block] = pool.allocate(1)
    pool.remember(block, b"known")
    pool.release([block])
    others = pool.allocate(2)
    assert block not in others, "blocks that hold nothing go first"
    assert pool.find(b"known") == block
    [again] = pool.allocate(1)
    assert again == block and pool.find(b"known") is None


def test_the_least_recently_used_of_known_blocks_goes_first():
    pool = BlockPool(4)
    first, second, third = pool.allocate(3)
    for block, name in ((first, b"1"), (second, b"2"), (third, b"3")):
        pool.remember(block, name)
    pool.release([second, first, third])
    pool.share(second)  # used again
    pool.release([second])
    assert pool.allocate(1) == [first]
    assert pool.find(b"1") is None and pool.find(b"2") == second


def test_a_shared_block_is_free_only_after_its_last_holder():
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.remember(block, b"x")
    pool.share(block)
    pool.release([block])
    assert pool.num_free == 0 and pool.ref_count(block) == 1
    pool.release([block])
    assert pool.num_free == 1 and pool.ref_count(block) == 0


def test_the_first_block_with_a_hash_keeps_it():
    pool = BlockPool(4)
    first, twin = pool.allocate(2)
    pool.remember(first, b"same")
    pool.remember(twin, b"same")
    assert pool.find(b"same") == first
    pool.release([first, twin])
    assert pool.allocate(2) == [twin, 3], "the anonymous twin goes before the known one"


def test_sequences_grow_into_their_neighbours():
    """With `run_length`, each new sequence starts where the one before has room to grow, so most stay contiguous."""
    pool = BlockPool(13, run_length=4)
    a, b = pool.allocate(1), pool.allocate(1)
    for sequence in (a, b, a, b):
        sequence += pool.allocate(1, after=sequence[-1])
    assert a == [1, 2, 3] and b == [5, 6, 7]


def test_releasing_twice_is_our_own_fault_and_loud():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released too often"):
        pool.release(blocks)
