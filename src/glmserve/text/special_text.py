"""Where a text spells special tokens: to mark such places in what users write, and to split a template's output at its own.

It knows the tokens' names and ids, not how other text is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from tokenizers import AddedToken


class SpecialText:
    """The special tokens of one tokenizer as they are written."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._ids = {token.content: token_id for token_id, token in tokens.items()}
        names = sorted(self._ids, key=len, reverse=True)
        self._anywhere = re.compile("(?=" + "|".join(map(re.escape, names)) + ")") if names else None
        ordered = [tokens[self._ids[name]] for name in names]
        self._split = re.compile("|".join(map(_pattern, ordered))) if names else None
        self._beginnings = frozenset(name[:end] for name in names for end in range(1, len(name)))
        self._longest = max(map(len, self._beginnings), default=0)

    def touches(self, text: str) -> bool:
        """True where the text holds a special token, or ends in what could become one with the text after it."""
        return bool(self._places(text))

    def guard(self, text: str, mark: str) -> str:
        """The text with `mark` inside everything that would read as a special token."""
        cuts = [0, *(place + 1 for place in sorted(self._places(text))), len(text)]
        return mark.join(text[start:end] for start, end in pairwise(cuts))

    def split(self, text: str) -> Iterator[str | int]:
        """Plain text and the ids of special tokens, in order."""
        at = 0
        for match in self._split.finditer(text) if self._split is not None else ():
            assert match.lastindex is not None
            if match.start() > at:
                yield text[at : match.start()]
            yield self._ids[match[match.lastindex]]
            at = match.end()
        if at < len(text):
            yield text[at:]

    def _places(self, text: str) -> set[int]:
        """Where special tokens begin, and where a beginning of one reaches the end."""
        places = {match.start() for match in self._anywhere.finditer(text)} if self._anywhere is not None else set()
        ends = range(1, min(self._longest, len(text)) + 1)
        return places | {len(text) - length for length in ends if text[-length:] in self._beginnings}


def _pattern(token: AddedToken) -> str:
    """One token; `lstrip` and `rstrip` say that it takes the spaces beside it along."""
    before, after = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    return f"{before}({re.escape(token.content)}){after}"
