"""Log probabilities as OpenAI's two protocols write them."""

from __future__ import annotations

from typing import Any

from glmserve.protocol.messages import TokenLogprobs
from glmserve.text.detokenizer import IncrementalDetokenizer
from glmserve.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no minus infinity; vLLM sends this number too


def token_name(tokenizer: Tokenizer | None, token_id: int) -> str:
    """A token by itself, as text."""
    return f"token_id:{token_id}" if tokenizer is None else tokenizer.token_text(token_id)


def chat_logprobs(tokenizer: Tokenizer | None, steps: list[TokenLogprobs], num_top: int) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    return {"content": [_chat_step(tokenizer, step, num_top) for step in steps]}


def _chat_step(tokenizer: Tokenizer | None, step: TokenLogprobs, num_top: int) -> dict[str, Any]:
    top = [_chat_token(tokenizer, step, index) for index in range(1, min(num_top + 1, len(step.token_ids)))]
    return _chat_token(tokenizer, step, 0) | {"top_logprobs": top}


def _chat_token(tokenizer: Tokenizer | None, step: TokenLogprobs, index: int) -> dict[str, Any]:
    token_id = step.token_ids[index]
    text = token_name(tokenizer, token_id)
    raw = text.encode() if tokenizer is None else tokenizer.token_bytes(token_id)
    return {"token": text, "logprob": max(step.logprobs[index], LOWEST), "bytes": list(raw)}


class CompletionLogprobs:
    """The `logprobs` of a completion choice; it counts the text's offset over the chunks of a stream.

    A token's offset is where the text begins that it adds; of one that is part of a character, where that character does.
    """

    def __init__(self, tokenizer: Tokenizer | None, num_top: int, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = offset
        self._text = None if tokenizer is None else IncrementalDetokenizer(tokenizer)

    def write(self, steps: list[TokenLogprobs]) -> dict[str, Any]:
        """The next steps."""
        tokens = [token_name(self._tokenizer, step.token_ids[0]) for step in steps]
        return {
            "text_offset": [self._advance(step.token_ids[0]) for step in steps],
            "token_logprobs": [max(step.logprobs[0], LOWEST) for step in steps],
            "tokens": tokens,
            "top_logprobs": [self._top(step) for step in steps],
        }

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if self._text is not None:
            self._offset += len(self._text.push([token_id]))
        return offset

    def _top(self, step: TokenLogprobs) -> dict[str, float]:
        count = min(self._num_top + 1, len(step.token_ids))
        best = {token_name(self._tokenizer, step.token_ids[k]): max(step.logprobs[k], LOWEST) for k in range(1, count)}
        best.setdefault(token_name(self._tokenizer, step.token_ids[0]), max(step.logprobs[0], LOWEST))
        return best
