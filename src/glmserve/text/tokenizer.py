"""What the server needs of a tokenizer, and which one a model folder has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from glmserve.models.spec import ModelSpec
from glmserve.text.bpe_tokenizer import BPETokenizer
from glmserve.text.chat_format import ChatMessage
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer
from glmserve.text.pieces import PieceTable


class Tokenizer(Protocol):
    """Text to token ids and back.  Every method is safe to call from several threads.

    Text from users never becomes a special token, unless the tokenizer was loaded with `allow_special_tokens`.
    """

    family: str
    vocab_size: int  # rows of the model's embedding; the tokenizer may know fewer ids
    eos_token_ids: tuple[int, ...]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with special tokens it is a prompt that the model can answer or continue."""
        ...

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation.  Raises InvalidRequestError for one that the model's format cannot say."""
        ...

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The same as text, for people to read."""
        ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of all ids.  Raises InvalidRequestError for an id outside the vocabulary."""
        ...

    def pieces(self, skip_special_tokens: bool = True) -> PieceTable:
        """The text of every token, for the detokenizer."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token by itself, for people to read; a special token shows its name."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token by itself; those of a part of a character are no valid UTF-8."""
        ...


def load_tokenizer(folder: Path, spec: ModelSpec, allow_special_tokens: bool = False) -> Tokenizer:
    """The tokenizer of the model in `folder`.  Raises ModelLoadError that names a missing or wrong file and what to do."""
    if spec.family == "chatglm":
        return ChatGLMTokenizer(folder, spec, allow_special_tokens)
    return BPETokenizer(folder, spec, allow_special_tokens)
