"""Blocks of each request, and finding K/V that an earlier request left behind.

Causal models share any run of full blocks from the start of the prompt.  A prefix model's context K/V depends on the whole context,
so it is found only by the identical context; its last, partly filled block is copied, since each request goes on writing there.
Soft tokens (P-Tuning) lie in front of every sequence: in blocks that all share, but for a copy of the last one where it is partly filled.
"""

from __future__ import annotations

import hashlib
from array import array

from glmserve.scheduler.block_pool import BlockPool
from glmserve.scheduler.request import Request


class KVCacheManager:
    """Gives blocks to requests and takes them back.  `block_copies` collects the copies that the next step must make first."""

    def __init__(self, pool: BlockPool, block_size: int, prefix_attention: bool, enable_caching: bool, num_soft_tokens: int = 0) -> None:
        """Raises ValueError for a pool that has no room for the soft tokens, which prefix models alone may have."""
        assert prefix_attention or not num_soft_tokens
        self.pool = pool
        self.block_size = block_size
        self.prefix_attention = prefix_attention
        self.enable_caching = enable_caching
        self.num_soft_tokens = num_soft_tokens
        soft_blocks = pool.allocate(-(-num_soft_tokens // block_size))
        if soft_blocks is None:
            raise ValueError(f"{pool.num_free} free blocks cannot hold {num_soft_tokens} soft tokens")
        self.soft_blocks = soft_blocks
        self.block_copies: list[tuple[int, int]] = []
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def context_key(self, request: Request) -> bytes | None:
        """What identical contexts have in common; None where contexts are not reused whole."""
        if not (self.enable_caching and self.prefix_attention and request.context_len):
            return None
        if request.context_key is None:
            request.context_key = _digest(b"context", request.token_ids[: request.context_len])
        return request.context_key

    def admit(self, request: Request, num_reserved: int = 0) -> bool:
        """Give a waiting request the blocks for all its tokens, cached ones first.

        False, and nothing changed, if they do not fit while `num_reserved` blocks stay free for the running ones to grow into.
        """
        cached, num_cached_tokens = self._cached_blocks(request)
        if self._take(request, cached, num_cached_tokens, num_reserved):
            return True
        # A cached context with a part-filled end holds one block more while that is copied. A context that fills the pool has to do
        # without, or it would wait for ever.
        return self._fills_in_part(num_cached_tokens) and self._take(request, self.soft_blocks, 0, num_reserved)

    def _take(self, request: Request, cached: list[int], num_cached_tokens: int, num_reserved: int) -> bool:
        # The last cached block of a prefix model is shared only to be copied: the request goes on writing in it.
        copy_last = bool(cached) and self._fills_in_part(num_cached_tokens)
        for block in cached:
            self.pool.share(block)  # before allocating, which could otherwise hand out a free cached block
        kept = cached[:-1] if copy_last else cached
        num_new = self._num_blocks(request.num_tokens) - len(kept)
        fits = num_new + num_reserved <= self.pool.num_free
        fresh = self.pool.allocate(num_new, after=kept[-1] if kept else None) if fits else None
        if fresh is None:
            self.pool.release(reversed(cached))
            return False
        if copy_last:
            self.block_copies.append((cached[-1], fresh[0]))
            self.pool.release([cached[-1]])
        request.block_ids = kept + fresh
        request.num_computed_tokens = num_cached_tokens
        if request.num_preemptions == 0:
            request.num_cached_tokens = num_cached_tokens
            self.num_queried_tokens += request.num_prompt_tokens
            self.num_hit_tokens += num_cached_tokens
        return True

    def grow(self, request: Request) -> bool:
        """Make room for the request's newest token.  False, and nothing changed, if no block is free."""
        missing = self._num_blocks(request.num_tokens) - len(request.block_ids)
        if missing <= 0:
            return True
        fresh = self.pool.allocate(missing, after=request.block_ids[-1])
        if fresh is None:
            return False
        request.block_ids += fresh
        return True

    def remember_computed(self, request: Request) -> None:
        """Make what is computed findable for later requests.  Call when K/V up to `num_computed_tokens` are written or on their way."""
        if not self.enable_caching:
            return
        if self.prefix_attention:
            key = self.context_key(request)
            if key is not None and request.num_computed_tokens >= request.context_len:
                for index in range(self._num_shared_by_all(), self._num_blocks(request.context_len)):
                    self.pool.remember(request.block_ids[index], _block_of_context(key, index))
            return
        num_known = min(request.num_computed_tokens, len(request.token_ids))
        for block, block_hash in zip(request.block_ids, self._chain(request.token_ids, num_known), strict=False):
            self.pool.remember(block, block_hash)

    def free(self, request: Request) -> None:
        """Take all blocks back, the last one first, so that the start of a prompt stays findable longest."""
        self.pool.release(reversed(request.block_ids))
        request.block_ids = []

    def take_block_copies(self) -> list[tuple[int, int]]:
        """The copies the next step must make; the list starts anew."""
        copies, self.block_copies = self.block_copies, []
        return copies

    def _cached_blocks(self, request: Request) -> tuple[list[int], int]:
        if self.prefix_attention:
            return self._cached_context(request)
        if not self.enable_caching:
            return [], 0
        blocks: list[int] = []
        # At least the newest token is always computed: its logits are what the request is here for.
        for block_hash in self._chain(request.token_ids, len(request.token_ids) - 1):
            block = self.pool.find(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks, len(blocks) * self.block_size

    def _cached_context(self, request: Request) -> tuple[list[int], int]:
        key = self.context_key(request)
        if key is None:
            return self.soft_blocks, 0
        first, last = self._num_shared_by_all(), self._num_blocks(request.context_len)
        blocks: list[int] = []
        for index in range(first, last):
            block = self.pool.find(_block_of_context(key, index))
            if block is None:  # most contexts are new, and their first block tells
                return self.soft_blocks, 0
            blocks.append(block)
        return self.soft_blocks[:first] + blocks, request.context_len

    def _chain(self, token_ids: list[int], num_tokens: int) -> list[bytes]:
        """A hash for each full block of the first `num_tokens` tokens; each covers all tokens before it too."""
        hashes: list[bytes] = []
        parent = b"chain"
        for start in range(0, num_tokens - self.block_size + 1, self.block_size):
            parent = _digest(parent, token_ids[start : start + self.block_size])
            hashes.append(parent)
        return hashes

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-(self.num_soft_tokens + num_tokens) // self.block_size)

    def _fills_in_part(self, num_tokens: int) -> bool:
        """Whether the last block of so many tokens has room for more."""
        return (self.num_soft_tokens + num_tokens) % self.block_size != 0

    def _num_shared_by_all(self) -> int:
        """Blocks that hold nothing but soft tokens."""
        return self.num_soft_tokens // self.block_size


def _block_of_context(key: bytes, index: int) -> bytes:
    return key + index.to_bytes(4, "little")


def _digest(parent: bytes, token_ids: list[int]) -> bytes:
    # 16 bytes: a collision would answer with another user's context, so Python's own hash is not enough.
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()
