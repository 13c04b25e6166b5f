"""One answer's text while its tokens arrive, with everything that shapes it at work together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.text.bpe_tokenizer import BPETokenizer
from glmserve.text.chatglm_response import process_response
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer
from glmserve.text.output_text import OutputText

IDS = st.lists(st.integers(0, 1079) | st.integers(4, 60), max_size=30)


def answer(
    tokenizer: ChatGLMTokenizer | BPETokenizer, ids: list[int], chat: bool = False, size: int = 1, **params: Any
) -> tuple[str, str | None, int]:
    """Text, stop string and number of tokens of an answer that arrives `size` tokens at a time."""
    output = OutputText(tokenizer, SamplingParams(**params), chat)
    shown, num_tokens = "", 0
    for start in range(0, max(1, len(ids)), size):
        delta = output.push(ids[start : start + size], finished=start + size >= len(ids))
        shown, num_tokens = shown + delta.text, num_tokens + delta.num_tokens
        if delta.stopped_by is not None:
            assert output.text == shown
            return shown, delta.stopped_by, num_tokens
    assert output.text == shown
    return shown, None, num_tokens


@given(ids=IDS, size=st.integers(1, 5))
def test_completions_show_the_raw_text(small: ChatGLMTokenizer, ids: list[int], size: int) -> None:
    eop = small.eos_token_ids[0]
    assert answer(small, [*ids, eop], size=size) == (small.decode(ids), None, len(ids) + 1)


@given(ids=IDS, size=st.integers(1, 5))
def test_chat_shows_the_processed_text(small: ChatGLMTokenizer, ids: list[int], size: int) -> None:
    assert answer(small, ids, chat=True, size=size)[0] == process_response(small.decode(ids))


def test_golden_answers(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("chat_cases"):
        assert answer(released, case["generated_ids"], chat=True)[0] == case["response"]


def test_other_models_chat_without_post_processing(bpe: BPETokenizer) -> None:
    assert answer(bpe, bpe.encode(" 你,好 "), chat=True)[0] == " 你,好 "


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_stop_string_ends_the_answer(bpe: BPETokenizer, size: int) -> None:
    ids = bpe.encode("one two STOP three")
    text, stop, num_tokens = answer(bpe, ids, size=size, stop=[" STOP", "three"])
    assert (text, stop) == ("one two", " STOP")
    assert bpe.decode(ids[:num_tokens]) == "one two STOP"  # tokens after it do not count
    assert answer(bpe, ids, size=size, stop=[" STOP"], include_stop_str_in_output=True)[0] == "one two STOP"


def test_stop_strings_are_looked_for_before_the_post_processing(small: ChatGLMTokenizer) -> None:
    ids = small.encode("你好,我", add_special_tokens=False)
    assert answer(small, ids, chat=True, stop=["，"])[1] is None
    assert answer(small, ids, chat=True, stop=[","])[:2] == ("你好", ",")


def test_a_stop_string_in_what_the_end_sets_free(small: ChatGLMTokenizer) -> None:
    ids = small.encode("a <", add_special_tokens=False)
    assert answer(small, ids, stop=["<"])[:2] == ("a ", "<")


def test_stop_strings_wait_for_min_tokens(bpe: BPETokenizer) -> None:
    ids = bpe.encode("x" * 10)
    text, stop, num_tokens = answer(bpe, ids, stop=["x"], min_tokens=4)
    assert stop == "x" and num_tokens == 5 and text == bpe.decode(ids[:4])


def test_stop_tokens_are_not_shown(bpe: BPETokenizer) -> None:
    ids = bpe.encode("one two three")
    assert answer(bpe, ids, stop_token_ids=[ids[-1]])[0] == bpe.decode(ids[:-1])
    assert answer(bpe, ids, stop_token_ids=[ids[-1]], include_stop_str_in_output=True)[0] == "one two three"
    assert answer(bpe, ids, stop_token_ids=[ids[0]])[0] == "one two three"  # only as the last does it end an answer
    assert answer(bpe, [*ids, 2], skip_special_tokens=False)[0] == "one two three"
    assert answer(bpe, [*ids, 2], skip_special_tokens=False, ignore_eos=True)[0] == "one two three<|im_end|>"


def test_without_detokenize_there_is_no_text(small: ChatGLMTokenizer) -> None:
    assert answer(small, [5, 6, 7], detokenize=False) == ("", None, 3)
    with pytest.raises(InvalidRequestError, match="stop strings need the text"):
        OutputText(small, SamplingParams(detokenize=False, stop=["a"]), chat=False)


def test_an_empty_answer(small: ChatGLMTokenizer) -> None:
    assert answer(small, [], chat=True, stop=["a"]) == ("", None, 0)
