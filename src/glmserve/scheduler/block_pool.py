"""The K/V blocks: who holds each, which are free, and which free ones still hold K/V worth finding again.

Block 0 is never handed out: padding rows of a CUDA graph read and write it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

NULL_BLOCK = 0


class BlockPool:
    """`num_blocks` blocks, block 0 reserved.  A free block keeps its hash, and so its use, until it is handed out again.

    `run_length` spreads the first blocks of new sequences this far apart and grows each sequence into its right-hand neighbour
    while that is free, so that on a CPU most sequences are one contiguous run that attention can read without a copy.
    """

    def __init__(self, num_blocks: int, run_length: int = 1) -> None:
        if num_blocks < 2:
            raise ValueError("a block pool needs at least 2 blocks")
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # Least recently used first; unhashed blocks are put in front, since they hold nothing to keep.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(
            block for start in range(run_length) for block in range(1 + start, num_blocks, run_length)
        )

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still hand out."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks held by requests, 0 to 1."""
        return 1.0 - len(self._free) / (self.num_blocks - 1)

    def ref_count(self, block: int) -> int:
        """How many requests hold `block`."""
        return self._ref_counts[block]

    def allocate(self, count: int, after: int | None = None) -> list[int] | None:
        """`count` blocks of which the caller is the only holder, or None (and nothing taken) when too few are free."""
        if count > len(self._free):
            return None
        blocks: list[int] = []
        for _ in range(count):
            block = self._next_free(after)
            del self._free[block]
            self._forget(block)
            self._ref_counts[block] = 1
            blocks.append(block)
            after = block
        return blocks

    def share(self, block: int) -> None:
        """Add a holder to a block found by `find`."""
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one holder of each.  Blocks without holders become free; give the last block of a sequence first, so that it goes first."""
        for block in blocks:
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} released too often"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)

    def remember(self, block: int, block_hash: bytes) -> None:
        """Make a held block findable.  The first block with a hash keeps it; later twins stay anonymous."""
        if self._hashes[block] is None and block_hash not in self._block_of_hash:
            self._hashes[block] = block_hash
            self._block_of_hash[block_hash] = block

    def forget_all(self) -> None:
        """Make no block findable any longer, held or free."""
        self._block_of_hash.clear()
        self._hashes = [None] * self.num_blocks

    def find(self, block_hash: bytes) -> int | None:
        """The block with this hash, held or free, or None."""
        return self._block_of_hash.get(block_hash)

    def _next_free(self, after: int | None) -> int:
        """The right-hand neighbour where that is free and costs no findable block that a worthless one could spare."""
        oldest = next(iter(self._free))
        if after is None or after + 1 not in self._free:
            return oldest
        return after + 1 if self._hashes[after + 1] is None or self._hashes[oldest] is not None else oldest

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._block_of_hash[block_hash]
            self._hashes[block] = None
