"""ChatGLM-6B's tokenizer: text and token ids over the released sentencepiece file `ice_text.model`.

It is the released tokenization_chatglm.py (revision 8b7d335) without transformers, with one deliberate difference: text from
a user never becomes a special token unless `allow_special_tokens` asks for it.  It is not the chat format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from glmserve.models.lfs import how_to_get_again
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.text.chat_format import ChatMessage, render_chatglm
from glmserve.text.detokenizer import Unspeller
from glmserve.text.pieces import EACH_BYTE, PieceTable
from glmserve.text.unicode_check import check_unicode

FILE_NAME = "ice_text.model"
SPACE = "\u2581"  # sentencepiece's sign for a space
SPECIAL_IN_TEXT = ("<sop>", "<eop>", "<unk>", "<pad>", "[MASK]")  # what the released code recognises in text
MAX_BLANKS = 80
_SPELLED = {"<n>": "\n", "<|tab|>": "\t"} | {f"<|blank_{count}|>": " " * count for count in range(2, MAX_BLANKS + 1)}
_BLANKS = re.compile(" {2,}")
_SPLIT_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_IN_TEXT)) + ")")


class ChatGLMTokenizer:
    """Text and ids of ChatGLM-6B.

    The ids are the file's own, plus 20000 in the 150528-row vocabulary; which of the two it is follows from the spec's
    [gMASK] id.  Raises ModelLoadError where the file is missing, broken or does not belong to the config.
    """

    family = "chatglm"

    def __init__(self, folder: Path, spec: ModelSpec, allow_special_tokens: bool = False) -> None:
        self._sp = _load(folder)
        self._allow_special_tokens = allow_special_tokens
        self._offset = _id_offset(self._sp, spec, folder)
        self.vocab_size = spec.vocab_size
        self.eos_token_ids = spec.eos_token_ids
        self._ids_of_special = {text: self._piece_id(text) for text in SPECIAL_IN_TEXT}
        self._sop, self._eop, self._gmask = (self._piece_id(piece) for piece in ("<sop>", "<eop>", "[gMASK]"))
        self.pad_token_id = self._piece_id("<pad>")
        self._skipped = frozenset(self._ids_of_special.values())
        self._surfaces = _surfaces(self._sp)
        self._tables = {skip: self._table(skip) for skip in (False, True)}
        self._unspeller = Unspeller(_SPELLED)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with special tokens it is a prompt: [gMASK] and <sop> at its end."""
        check_unicode(text)
        ids = [piece_id + self._offset for segment in self._segments(text) for piece_id in segment]
        return [*ids, self._gmask, self._sop] if add_special_tokens else ids

    def encode_pair(self, text: str, answer: str) -> list[int]:
        """A prompt and the answer to it: text [gMASK] <sop> answer <eop>."""
        return [*self.encode(text), *self.encode(answer, add_special_tokens=False), self._eop]

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation.  Raises InvalidRequestError for an order of roles this format cannot say."""
        return self.encode(self.render_chat(messages))

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the text that the model was trained on."""
        return render_chatglm(messages)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`.  Raises InvalidRequestError for an id outside the vocabulary."""
        self._check(token_ids)
        dropped = self._skipped if skip_special_tokens else {self.pad_token_id}
        num_pieces = len(self._surfaces)
        ids = [token_id - self._offset for token_id in token_ids if token_id not in dropped]
        text = self._sp.decode([piece_id for piece_id in ids if 0 <= piece_id < num_pieces])
        return self._unspeller.undo(text)

    def pieces(self, skip_special_tokens: bool = True) -> PieceTable:
        """The text of every token, for the detokenizer."""
        return self._tables[skip_special_tokens]

    def token_text(self, token_id: int) -> str:
        """One token by itself, for people to read; a special token shows its name."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token by itself; those of a part of a character are no valid UTF-8."""
        self._check((token_id,))
        piece_id = token_id - self._offset
        if not 0 <= piece_id < len(self._surfaces):
            return b""
        if self._sp.is_control(piece_id) or self._sp.is_unknown(piece_id):
            return str(self._sp.id_to_piece(piece_id)).encode()
        surface = self._surfaces[piece_id]
        return surface if isinstance(surface, bytes) else _SPELLED.get(surface, surface).encode()

    def _segments(self, text: str) -> Iterator[list[int]]:
        """Piece ids of the text between special tokens, and of those tokens where they are allowed."""
        if not self._allow_special_tokens:
            yield self._encode_plain(text)
            return
        parts = _SPLIT_SPECIAL.split(text)
        last = len(parts) - 1
        for index, part in enumerate(parts):
            if index % 2:
                yield [self._ids_of_special[part] - self._offset]
                continue
            part = part.lstrip() if index > 0 else part  # the released code strips what touches a special token
            yield self._encode_plain(part.rstrip() if index < last else part)

    def _encode_plain(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        return list(self._sp.encode(_BLANKS.sub(_spell_blanks, text)))

    def _table(self, skip_special_tokens: bool) -> PieceTable:
        pieces: list[str | bytes | None] = [None] * self._offset  # the old vocabulary's image tokens have no text
        pieces += self._surfaces
        for token_id in self._skipped if skip_special_tokens else (self.pad_token_id,):
            pieces[token_id] = None
        at_start = {
            index + self._offset: surface[1:]
            for index, surface in enumerate(self._surfaces)
            if isinstance(surface, str) and surface[:1] == " " and not self._sp.is_unknown(index)
        }
        return PieceTable(pieces, at_start, spelled=_SPELLED, byte_errors=EACH_BYTE)

    def _piece_id(self, piece: str) -> int:
        return int(self._sp.piece_to_id(piece)) + self._offset

    def _check(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} ids")


def _load(folder: Path) -> SentencePieceProcessor:
    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelLoadError(
            f"{folder} has no {FILE_NAME}, the tokenizer of ChatGLM-6B. Copy it from the released model's folder, "
            "or serve token ids only with --skip-tokenizer-init."
        )
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ModelLoadError(f"{path} is not a sentencepiece model ({error}). {how_to_get_again(path)}") from error


def _id_offset(sp: SentencePieceProcessor, spec: ModelSpec, folder: Path) -> int:
    """What is added to the file's ids: 0, or 20000 in the old vocabulary."""
    missing = [piece for piece in ("[gMASK]", "<sop>", "<eop>", "<pad>", "[MASK]") if sp.is_unknown(sp.piece_to_id(piece))]
    if missing:
        raise ModelLoadError(f"{folder / FILE_NAME} has no piece {missing[0]}, so it is not the tokenizer of ChatGLM-6B.")
    offset = 0 if spec.gmask_token_id is None else spec.gmask_token_id - int(sp.piece_to_id("[gMASK]"))
    fits = offset >= 0 and offset + sp.get_piece_size() <= spec.vocab_size
    if not fits or spec.bos_token_id not in (None, sp.piece_to_id("<sop>") + offset):
        raise ModelLoadError(
            f"{folder / FILE_NAME} and config.json do not belong together: the tokenizer has {sp.get_piece_size()} pieces with "
            f"[gMASK] {sp.piece_to_id('[gMASK]')} and <sop> {sp.piece_to_id('<sop>')}, the config {spec.vocab_size} ids with "
            f"[gMASK] {spec.gmask_token_id} and <sop> {spec.bos_token_id}. Take both files from the same release."
        )
    return offset


def _surfaces(sp: SentencePieceProcessor) -> list[str | bytes]:
    """Text of every piece as sentencepiece decodes it in the middle of a text; a byte piece is its byte."""
    ids = list(range(sp.get_piece_size()))
    names = sp.id_to_piece(ids)
    is_control, is_byte, is_unknown = sp.is_control(ids), sp.is_byte(ids), sp.is_unknown(ids)
    surfaces: list[str | bytes] = [name.replace(SPACE, " ") for name in names]
    for index in ids:
        if is_control[index]:
            surfaces[index] = ""
        elif is_byte[index]:
            surfaces[index] = bytes([int(names[index][1:-1], 16)])
        elif is_unknown[index]:
            surfaces[index] = str(sp.decode([index]))
    return surfaces


def _spell_blanks(run: re.Match[str]) -> str:
    """80 spaces at a time, then the rest; a single space stays one."""
    whole, rest = divmod(len(run[0]), MAX_BLANKS)
    return f"<|blank_{MAX_BLANKS}|>" * whole + (f"<|blank_{rest}|>" if rest > 1 else " " * rest)
