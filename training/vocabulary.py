"""Text to ids and back over one-character pieces, without sentencepiece: what training needs, on a machine that has only torch.

A test holds it equal to sentencepiece over the same file.  It does not read the .model file; `tokenizer` writes both.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

PIECES = "pieces.json"  # the file beside the poems
SPACE = "\u2581"
NEW_LINE = "<n>"
_SPACES = re.compile(" +")


class Vocabulary:
    """`pieces[id]` is the piece of each id, in the order of the .model file."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self._ids = {piece: index for index, piece in enumerate(pieces)}
        self.space, self.new_line = self._ids[SPACE], self._ids[NEW_LINE]
        self.gmask, self.sop, self.eop, self.pad = (self._ids[piece] for piece in ("[gMASK]", "<sop>", "<eop>", "<pad>"))
        self._first_byte = self._ids["<0x00>"]
        self._of_character = {piece: index for index, piece in enumerate(pieces) if len(piece) == 1}
        self._of_character |= {" ": self.space, "\n": self.new_line}

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, the leading space piece included; a character without a piece becomes its UTF-8 bytes."""
        text = _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip(" ")
        if not text:
            return []
        ids = [self.space]
        for character in text:
            found = self._of_character.get(character)
            if found is None:
                ids += [self._first_byte + byte for byte in character.encode()]
            else:
                ids.append(found)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The context and the token that begins the answer: text [gMASK] <sop>."""
        return [*self.encode(text), self.gmask, self.sop]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens have none."""
        raw = b"".join(self._bytes(index) for index in ids)
        return raw.decode("utf-8", "replace").removeprefix(" ")

    def _bytes(self, index: int) -> bytes:
        piece = self.pieces[index]
        if len(piece) == 1:
            return b" " if piece == SPACE else piece.encode()
        if index == self.new_line:
            return b"\n"
        return bytes([index - self._first_byte]) if 0 <= index - self._first_byte < 256 else b""
