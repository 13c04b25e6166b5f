"""Tokenizers that come as `tokenizer.json`, with a chat template in `tokenizer_config.json`: SmolLM2 and other Llama-shaped models.

Ids agree with transformers' AutoTokenizer and apply_chat_template, with one deliberate difference: text from a user never becomes
a special token unless `allow_special_tokens` asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as TokenizerFile

from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.text.chat_format import ChatMessage
from glmserve.text.chat_template import ChatTemplate
from glmserve.text.detokenizer import IncrementalDetokenizer
from glmserve.text.pieces import PieceTable
from glmserve.text.special_text import SpecialText
from glmserve.text.unicode_check import check_unicode

FILE_NAME = "tokenizer.json"
SPACE = "\u2581"  # how sentencepiece-like vocabularies write a space
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class BPETokenizer:
    """Text and ids of a model with a tokenizer.json.  Raises ModelLoadError where a file is missing, broken or of another model."""

    def __init__(self, folder: Path, spec: ModelSpec, allow_special_tokens: bool = False) -> None:
        source = _read(folder)
        self.family = spec.family
        self.vocab_size = spec.vocab_size
        self.eos_token_ids = spec.eos_token_ids
        self._allow_special_tokens = allow_special_tokens
        self._special_aware = _parse(source, folder)
        self._plain = _parse(source, folder)
        self._plain.encode_special_tokens = True  # special tokens in the text are encoded as any other text
        self._template = _read_template(folder)
        added = self._special_aware.get_added_tokens_decoder()
        self._special_names = {token_id: token.content for token_id, token in added.items() if token.special}
        self._special_text = SpecialText({token_id: token for token_id, token in added.items() if token.special})
        parsed = json.loads(source)
        surfaces = _surfaces(self._special_aware, parsed, folder)
        if len(surfaces) > spec.vocab_size:
            raise ModelLoadError(
                f"{folder / FILE_NAME} and config.json do not belong together: the tokenizer has {len(surfaces)} ids, the model "
                f"{spec.vocab_size}. Take both files from the same model."
            )
        self._tables = {skip: self._table(surfaces, parsed, skip) for skip in (False, True)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with special tokens also those that the file puts around every text, if any."""
        if self._allow_special_tokens:
            return self._ids(self._special_aware, text, add_special_tokens)
        return self._ids(self._plain, text, add_special_tokens)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation, ready for the answer."""
        if self._allow_special_tokens or not any(self._special_text.touches(message.content) for message in messages):
            return self._ids(self._special_aware, self.render_chat(messages), add_special_tokens=False)
        return self._encode_guarded(messages)

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as text, by the model's template.  Raises InvalidRequestError where it has none or refuses."""
        return self._chat_template().render(messages)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`.  Raises InvalidRequestError for an id outside the vocabulary."""
        for token_id in token_ids:
            self._check(token_id)
        detokenizer = IncrementalDetokenizer(self, skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def pieces(self, skip_special_tokens: bool = True) -> PieceTable:
        """The text of every token, for the detokenizer."""
        return self._tables[skip_special_tokens]

    def token_text(self, token_id: int) -> str:
        """One token by itself, for people to read; a special token shows its name."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token by itself; those of a part of a character are no valid UTF-8."""
        self._check(token_id)
        pieces = self._tables[False].pieces
        piece = pieces[token_id] if token_id < len(pieces) else None
        return piece if isinstance(piece, bytes) else (piece or "").encode()

    def _encode_guarded(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Special tokens that the template wrote count, those in the messages do not."""
        template = self._chat_template()
        mark = _unused_character(template.source, *(message.content for message in messages))
        guarded = [ChatMessage(message.role, self._special_text.guard(message.content, mark)) for message in messages]
        ids: list[int] = []
        for part in self._special_text.split(template.render(guarded)):
            ids += [part] if isinstance(part, int) else self._ids(self._plain, part.replace(mark, ""), add_special_tokens=False)
        return ids

    def _ids(self, tokenizer: TokenizerFile, text: str, add_special_tokens: bool) -> list[int]:
        check_unicode(text)
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template (chat_template in tokenizer_config.json): use /v1/completions with a prompt", "messages"
            )
        return self._template

    def _table(self, surfaces: list[bytes], source: dict[str, Any], skip_special_tokens: bool) -> PieceTable:
        pieces: list[str | bytes | None] = [_text_if_whole(surface) for surface in surfaces]
        for token_id, name in self._special_names.items():
            pieces[token_id] = None if skip_special_tokens else name
        at_start = {}
        if _drops_leading_space(source):
            at_start = {index: piece[1:] for index, piece in enumerate(pieces) if isinstance(piece, str) and piece[:1] == " "}
        return PieceTable(pieces, at_start, first_only=True)

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequestError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} ids")


def _read(folder: Path) -> str:
    path = folder / FILE_NAME
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} has no {FILE_NAME}. Copy it from the model's release, or serve token ids only with --skip-tokenizer-init."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}. Download it again.") from error


def _parse(source: str, folder: Path) -> TokenizerFile:
    try:
        tokenizer = TokenizerFile.from_str(source)
    except Exception as error:  # the library raises Exception itself
        raise ModelLoadError(f"{folder / FILE_NAME} is not a tokenizer file: {error}. Download it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja, or the key of tokenizer_config.json: a string, or a list of named ones of which "default" counts."""
    config = _read_tokenizer_config(folder)
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        return None
    values = {role: config.get(role) for role in _ROLES}
    names = {role: value["content"] if isinstance(value, dict) else value for role, value in values.items()}
    return ChatTemplate(source, {role: name for role, name in names.items() if name is not None})


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} should hold a JSON object. Download it again.")
    return config


def _surfaces(tokenizer: TokenizerFile, source: dict[str, Any], folder: Path) -> list[bytes]:
    """The bytes of every id.  Raises ModelLoadError for a kind of vocabulary whose bytes this code would get wrong."""
    kinds = _decoder_kinds(source)
    if "ByteLevel" in kinds:
        to_bytes = _byte_level_bytes
    elif kinds & {"ByteFallback", "Metaspace"}:
        to_bytes = _sentencepiece_bytes
    else:
        raise ModelLoadError(
            f"{folder / FILE_NAME} has a decoder of kind {', '.join(sorted(kinds)) or 'none'}; this server knows ByteLevel, "
            "ByteFallback and Metaspace."
        )
    num_ids = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return [to_bytes(tokenizer.id_to_token(index) or "") for index in range(num_ids)]


def _decoder_kinds(source: dict[str, Any]) -> set[str]:
    decoder = source.get("decoder") or {}
    return {part["type"] for part in [decoder, *decoder.get("decoders", [])] if "type" in part}


def _drops_leading_space(source: dict[str, Any]) -> bool:
    decoder = source.get("decoder") or {}
    parts = [decoder, *decoder.get("decoders", [])]
    strips = any(part.get("type") == "Strip" and part.get("start") for part in parts)
    return strips or any(part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in parts)


def _byte_level_bytes(token: str) -> bytes:
    table = _byte_of_character()
    try:
        return bytes(table[char] for char in token)
    except KeyError:  # an added token, written as it is
        return token.encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _sentencepiece_bytes(token: str) -> bytes:
    name = _BYTE_NAME.fullmatch(token)
    return bytes([int(name[1], 16)]) if name else token.replace(SPACE, " ").encode()


def _text_if_whole(surface: bytes) -> str | bytes:
    try:
        return surface.decode()
    except UnicodeDecodeError:
        return surface


def _unused_character(*texts: str) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    for char in map(chr, range(0xE000, 0xF900)):
        if char not in used:
            return char
    raise InvalidRequestError("the messages use every private-use character of Unicode: leave one out", "messages")
