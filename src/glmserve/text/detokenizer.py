"""Token ids to text, a few at a time: the deltas joined are exactly what decoding all ids at once gives.

It holds back what later tokens may still change: an incomplete UTF-8 character, and the beginning of a spelled-out string
such as ChatGLM-6B's "<n>".  It knows nothing of stop strings or of chat.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from glmserve.text.pieces import PieceSource


class IncrementalDetokenizer:
    """Text of one growing sequence; the cost of a token does not depend on how many came before.

    Ids outside the table (a model's embedding may have more rows than the tokenizer has pieces) have no text.
    """

    def __init__(self, tokenizer: PieceSource, skip_special_tokens: bool = True) -> None:
        table = tokenizer.pieces(skip_special_tokens)
        self._pieces = table.pieces
        self._at_start, self._first_only = table.at_start, table.first_only
        self._is_empty = True  # no text yet, so an encoder's leading space is still dropped
        self._bytes = codecs.getincrementaldecoder("utf-8")(table.byte_errors)
        self._bytes_pending = False
        self._unspell = Unspeller(table.spelled) if table.spelled else None

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens add and that no later token can change."""
        pieces, num_pieces = self._pieces, len(self._pieces)
        parts: list[str] = []
        for token_id in token_ids:
            piece = pieces[token_id] if 0 <= token_id < num_pieces else None
            if piece is None:
                continue
            if isinstance(piece, bytes):
                part = self._bytes.decode(piece)
                self._bytes_pending = True
            else:
                part = self._whole_piece(token_id, piece)
            if part:
                self._is_empty = False
                parts.append(part)
        text = "".join(parts)
        return self._unspell.push(text) if self._unspell is not None else text

    def flush(self) -> str:
        """The rest, at the end of the sequence; an incomplete character shows as U+FFFD."""
        text = self._end_bytes()
        if self._unspell is None:
            return text
        return self._unspell.push(text) + self._unspell.flush()

    def _whole_piece(self, token_id: int, piece: str) -> str:
        before = self._end_bytes() if self._bytes_pending else ""
        if self._is_empty and not before:
            self._is_empty = not self._first_only
            return self._at_start.get(token_id, piece)
        return before + piece

    def _end_bytes(self) -> str:
        self._bytes_pending = False
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text


class Unspeller:
    """Puts back what an encoder spelled out ("<n>" for a line break), also where several tokens make up the string."""

    def __init__(self, spelled: Mapping[str, str]) -> None:
        self._spelled = spelled
        self._pattern, self._beginnings, self._firsts = _compile(tuple(spelled))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    def push(self, delta: str) -> str:
        """The text that is certain so far."""
        text = self._held + delta if self._held else delta
        if not any(first in text for first in self._firsts):
            self._held = ""
            return text
        cut = len(text) - self._num_held(text)
        self._held = text[cut:]
        return self.undo(text[:cut])

    def flush(self) -> str:
        """What was held back and turned out to be plain text."""
        text, self._held = self._held, ""
        return text

    def undo(self, text: str) -> str:
        """The same for a whole text."""
        return self._pattern.sub(lambda match: self._spelled[match[0]], text)

    def _num_held(self, text: str) -> int:
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


@lru_cache(maxsize=8)
def _compile(strings: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str], frozenset[str]]:
    """Pattern of the strings, longest first; all their proper beginnings; their first characters."""
    pattern = "|".join(re.escape(string) for string in sorted(strings, key=len, reverse=True))
    beginnings = frozenset(string[:end] for string in strings for end in range(1, len(string)))
    return re.compile(pattern), beginnings, frozenset(string[0] for string in strings)
