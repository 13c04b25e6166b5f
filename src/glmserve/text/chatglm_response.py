"""What ChatGLM-6B's released `chat()` does to an answer before it shows it, for a whole text and for a stream.

Spaces around the text go, "[[训练时间]]" becomes "2023年", and a , ! : ; ? beside a Chinese character becomes full-width.
"""

from __future__ import annotations

import re

PLACEHOLDER, REPLACED_BY = "[[训练时间]]", "2023年"
_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_CHINESE = "\u4e00-\u9fff"
# The released code replaces mark after mark; no replacement is a Chinese character or another mark, so one pass is the same.
_MARKS = re.compile(f"(?<=[{_CHINESE}])[,!:;?]|[,!:;?](?=[{_CHINESE}])")


def process_response(text: str) -> str:
    """The released post-processing of a whole answer."""
    return _widen(text.strip().replace(PLACEHOLDER, REPLACED_BY))


class ResponseStream:
    """The same for a stream: the deltas joined, and finish(), are process_response of the whole text.

    It holds back what depends on what comes: spaces that may be the last, a mark whose right neighbour is not known, and the
    beginning of the placeholder.
    """

    def __init__(self) -> None:
        self._last = ""  # the character before the held text, which decides on a mark after it
        self._held = ""

    def push(self, delta: str) -> str:
        """The processed text that no later delta can change."""
        text = self._held + delta
        if not self._last:
            text = text.lstrip()
        text = text.replace(PLACEHOLDER, REPLACED_BY)
        return self._emit(text, len(text) - self._num_held(text))

    def finish(self) -> str:
        """The rest, at the end of the answer."""
        text = self._held.rstrip()
        return self._emit(text, len(text))

    def _emit(self, text: str, cut: int) -> str:
        """The first `cut` characters, read with both neighbours; the rest is held."""
        self._held = text[cut:]
        if not cut:
            return ""
        before = len(self._last)
        widened = _widen(self._last + text[: cut + 1])
        self._last = text[cut - 1]
        return widened[before : before + cut]

    def _num_held(self, text: str) -> int:
        num_spaces = len(text) - len(text.rstrip())
        if num_spaces:
            return num_spaces
        for length in range(min(len(PLACEHOLDER) - 1, len(text)), 0, -1):
            if text.endswith(PLACEHOLDER[:length]):
                return length
        return 1 if self._ends_undecided(text) else 0

    def _ends_undecided(self, text: str) -> bool:
        """True where the last character is a mark that its left neighbour does not make full-width."""
        return text[-1:] in _FULL_WIDTH and _widen((self._last + text)[-2:])[-1] == text[-1]


def _widen(text: str) -> str:
    return _MARKS.sub(lambda mark: _FULL_WIDTH[mark[0]], text)
