"""The tokenizer inside a GGUF file, as a `tokenizers` one: byte-level BPE, the way SmolLM splits text before it merges."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from glmserve.protocol.errors import ModelLoadError

CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType: never made by merges, matched whole in the text


def gguf_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer from a GGUF's `tokenizer.ggml.*`.  Raises ModelLoadError for any other kind than SmolLM's."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise ModelLoadError(f"the GGUF file has a {kind!r} tokenizer with pre-tokenizer {pre!r}; only 'gpt2' with 'smollm' is known.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    return tokenizer


def gguf_tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the names of the special tokens and the chat template."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]

    def token(role: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if index is None else tokens[index]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
