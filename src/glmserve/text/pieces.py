"""What each token id looks like as text, as one table: the detokenizer reads this and never asks a tokenizer library.

It is not a tokenizer: it cannot encode.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

REPLACEMENT = "\ufffd"
EACH_BYTE = "glmserve.each_byte"  # name of the error handler below


@dataclass(frozen=True)
class PieceTable:
    """The text of every token id.

    `pieces[id]` is a `str` (whole characters), `bytes` (part of a character, to be joined with its neighbours) or None
    where the token is dropped before anything is joined.  An empty string is a token without text, which still ends a run
    of bytes.  `at_start` holds the pieces that read otherwise as long as the text is empty (a leading space that the
    encoder put there), or with `first_only` for the very first piece alone.  `spelled` are strings that stand for others
    once everything is joined, as ChatGLM-6B's "<n>".
    """

    pieces: Sequence[str | bytes | None]
    at_start: Mapping[int, str] = field(default_factory=dict)
    first_only: bool = False
    spelled: Mapping[str, str] = field(default_factory=dict)
    byte_errors: str = "replace"  # how bytes that are no UTF-8 show: one U+FFFD a maximal part, or EACH_BYTE


class PieceSource(Protocol):
    """Whatever has a table of pieces: a tokenizer."""

    def pieces(self, skip_special_tokens: bool = True) -> PieceTable:
        """The table with or without the text of special tokens."""
        ...


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each byte that is no UTF-8, as sentencepiece does; Python's "replace" joins some of them."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)
