"""What one step computes: either pieces of prompts or the newest token of each running request, never both.

Either kind samples a token for each request whose newest token it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from glmserve.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens [start, start + length) of a request, given that K/V of all tokens before `start` are in the pool.

    What they see is the request's: all of its context, and beyond that what comes before them.  A context is never split.
    """

    request: Request
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step.  `requests` are those that it samples one token each for.

    A decode step has `requests` alone and computes the newest token of each.  A prefill step has `chunks`, and its `requests`, in the same
    order, are those of the first chunks: where a chunk ends before its request's newest token the budget is used up, so it is the last.
    `block_copies` are (source, destination) blocks to copy before anything is computed.
    """

    chunks: list[PrefillChunk] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_prefill(self) -> bool:
        """True for a step over prompts."""
        return bool(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens this step computes."""
        return sum(chunk.length for chunk in self.chunks) if self.chunks else len(self.requests)
