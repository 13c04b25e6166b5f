"""Finds stop strings in a stream of text, however it is cut into deltas.  It ends nothing by itself: the caller does."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec


class StopResult(msgspec.Struct, frozen=True, gc=False):
    """Text that is certain, and the stop string that was found, if one was."""

    text: str
    stop: str | None = None


class StopStrings:
    """Watches one growing text for `stops`.

    The stop that is complete first counts; of several that end at the same character, the longest.  The text ends before
    it, or after it with `include_stop`.  Text that may yet turn out to begin a stop string is held back.  The cost of a
    character does not depend on how long the stop strings are.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._include_stop = include_stop
        self._held = ""

    def push(self, delta: str) -> StopResult:
        """What the delta makes certain.  After a match nothing more may be pushed."""
        end, found = len(delta), None
        for matcher in self._matchers:  # longest first, so that a tie goes to the longest
            match = matcher.push(delta, end if found is None else end - 1)
            if match is not None:
                end, found = match, matcher.stop
        text = self._held + delta[:end]
        if found is not None:
            self._held = ""
            return StopResult(text if self._include_stop else text[: -len(found)], found)
        cut = len(text) - max((matcher.num_matched for matcher in self._matchers), default=0)
        self._held = text[cut:]
        return StopResult(text[:cut])

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text


class _Matcher:
    """Knuth, Morris and Pratt's search for one string, one character after the other."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0  # length of the longest beginning of `stop` that the text ends with
        self._fallbacks = _fallbacks(stop)

    def push(self, delta: str, limit: int) -> int | None:
        """Where in delta[:limit] the stop string ends for the first time."""
        stop, fallbacks, matched = self.stop, self._fallbacks, self.num_matched
        if matched == 0 and stop[0] not in delta:  # the usual case, at the speed of C
            return None
        for index in range(limit):
            char = delta[index]
            while matched and stop[matched] != char:
                matched = fallbacks[matched - 1]
            if stop[matched] == char:
                matched += 1
                if matched == len(stop):
                    return index + 1
        self.num_matched = matched
        return None


@functools.lru_cache(maxsize=256)  # the choices of a request have the same, and often its successors
def _fallbacks(stop: str) -> list[int]:
    """For each beginning of `stop`, the length of its longest proper beginning that is also its end."""
    table = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[matched] != stop[index]:
            matched = table[matched - 1]
        if stop[matched] == stop[index]:
            matched += 1
        table[index] = matched
    return table
