"""The text of one answer while its tokens arrive: detokenized, cut at a stop string, and for ChatGLM-6B's chat post-processed.

Stop strings are looked for in the raw text, before the post-processing.  It does not know why an answer ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.text.chatglm_response import ResponseStream
from glmserve.text.detokenizer import IncrementalDetokenizer
from glmserve.text.stop_strings import StopStrings
from glmserve.text.tokenizer import Tokenizer


class TextDelta(msgspec.Struct, gc=False):
    """New text, the stop string that ended the answer if one did, and how many of the pushed tokens belong to the answer."""

    text: str
    stopped_by: str | None
    num_tokens: int


class OutputText:
    """One sequence.  After a delta with `stopped_by`, or a push with `finished`, nothing more may be pushed.

    Raises InvalidRequestError for stop strings together with detokenize=False: there would be no text to find them in.
    """

    def __init__(self, tokenizer: Tokenizer, sampling_params: SamplingParams, chat: bool) -> None:
        params = sampling_params
        if params.stop and not params.detokenize:
            raise InvalidRequestError("stop strings need the text: leave detokenize on, or use stop_token_ids", "stop")
        self._parts: list[str] = []
        self._num_tokens = 0
        self._min_tokens = params.min_tokens
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens) if params.detokenize else None
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._response = ResponseStream() if chat and tokenizer.family == "chatglm" else None
        self._hidden_ends: frozenset[int] = frozenset()
        if not params.include_stop_str_in_output:
            self._hidden_ends = frozenset([*params.stop_token_ids, *(() if params.ignore_eos else tokenizer.eos_token_ids)])

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, token_ids: Sequence[int], finished: bool) -> TextDelta:
        """The text that these tokens make certain; with `finished` all that is left."""
        delta = self._push(token_ids, finished)
        if self._response is not None:
            delta.text = self._response.push(delta.text)
            if finished or delta.stopped_by is not None:
                delta.text += self._response.finish()
        if delta.text:
            self._parts.append(delta.text)
        return delta

    def _push(self, token_ids: Sequence[int], finished: bool) -> TextDelta:
        detokenizer = self._detokenizer
        if detokenizer is None:
            return TextDelta("", None, len(token_ids))
        shown = token_ids[:-1] if finished and token_ids and token_ids[-1] in self._hidden_ends else token_ids
        if self._stops is not None:
            return self._push_watched(detokenizer, self._stops, token_ids, len(shown), finished)
        text = detokenizer.push(shown)
        return TextDelta(text + detokenizer.flush() if finished else text, None, len(token_ids))

    def _push_watched(
        self, detokenizer: IncrementalDetokenizer, stops: StopStrings, token_ids: Sequence[int], num_shown: int, finished: bool
    ) -> TextDelta:
        """Token by token, to know which one completes a stop string; none counts before `min_tokens`."""
        parts: list[str] = []
        for position in range(num_shown):
            self._num_tokens += 1
            delta = detokenizer.push(token_ids[position : position + 1])
            if self._num_tokens <= self._min_tokens:
                parts.append(delta)
                continue
            result = stops.push(delta)
            parts.append(result.text)
            if result.stop is not None:
                return TextDelta("".join(parts), result.stop, position + 1)
        if not finished:
            return TextDelta("".join(parts), None, len(token_ids))
        result = stops.push(detokenizer.flush())
        return TextDelta("".join([*parts, result.text, stops.flush()]), result.stop, len(token_ids))
