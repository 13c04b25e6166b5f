"""Deltas joined are the whole text, for any ids and however they arrive."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glmserve.text.bpe_tokenizer import BPETokenizer
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer
from glmserve.text.detokenizer import IncrementalDetokenizer

# Small ids and the end of the vocabulary hold what matters: blanks, special pieces, bytes, rows without a piece.
SMALL_IDS = st.lists(st.integers(0, 1079) | st.integers(0, 12) | st.integers(720, 1079) | st.integers(812, 1067), max_size=24)
RELEASED_IDS = st.lists(st.integers(0, 130527) | st.integers(0, 12) | st.integers(130000, 130360), max_size=24)


def deltas(tokenizer: ChatGLMTokenizer | BPETokenizer, ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.flush()]


@given(ids=SMALL_IDS, skip=st.booleans())
def test_deltas_join_to_the_decoded_text(small: ChatGLMTokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(deltas(small, ids, skip)) == small.decode(ids, skip)


@given(ids=RELEASED_IDS, skip=st.booleans())
def test_released_deltas_join_to_the_decoded_text(released: ChatGLMTokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(deltas(released, ids, skip)) == released.decode(ids, skip)


@given(ids=SMALL_IDS, cuts=st.lists(st.integers(0, 24), max_size=4))
def test_tokens_may_arrive_together(small: ChatGLMTokenizer, ids: list[int], cuts: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(small)
    edges = [0, *sorted(cuts), len(ids)]
    text = "".join(detokenizer.push(ids[start:end]) for start, end in itertools.pairwise(edges))
    assert text + detokenizer.flush() == small.decode(ids)


def test_golden_prefixes(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("tokenizer_cases")["incremental_decode"]:
        assert "".join(deltas(released, case["ids"])) == case["text"]


def test_golden_answers(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("chat_cases"):
        assert "".join(deltas(released, case["generated_ids"])) == case["raw_decode"]


def test_a_character_of_several_tokens_comes_whole(small: ChatGLMTokenizer) -> None:
    ids = small.encode("👋🏻x", add_special_tokens=False)
    assert [delta for delta in deltas(small, ids) if delta] == ["👋", "🏻", "x"]


def test_an_incomplete_character_shows_at_the_end_only(small: ChatGLMTokenizer) -> None:
    ids = small.encode("👋", add_special_tokens=False)[:-1]
    *before, last = deltas(small, ids)
    assert "".join(before) == ""
    assert last == "\ufffd" * 3  # one for each byte, as the released tokenizer shows it


def test_a_line_break_spelled_with_several_tokens(small: ChatGLMTokenizer) -> None:
    """The released code turns "<n>" into a line break wherever the joined text has it, and so must the stream."""
    ids = [small.encode(f"x{char}", add_special_tokens=False)[-1] for char in "<n>"]
    assert len({*ids}) == 3
    assert deltas(small, ids) == ["", "", "\n", ""]
    assert deltas(small, [*ids[:2], ids[0]]) == ["", "", "<n", "<"]


def test_blanks_come_back(small: ChatGLMTokenizer) -> None:
    text = "a\n\tb     c"
    assert "".join(deltas(small, small.encode(text))) == text


@given(ids=st.lists(st.integers(0, 607), max_size=24), skip=st.booleans())
def test_bpe_deltas_join_to_the_decoded_text(bpe: BPETokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(deltas(bpe, ids, skip)) == bpe.decode(ids, skip)


@given(text=st.text())
def test_bpe_deltas_hold_no_half_characters(bpe: BPETokenizer, text: str) -> None:
    parts = deltas(bpe, bpe.encode(text))
    assert "".join(parts) == text
    assert text.count("\ufffd") == sum(part.count("\ufffd") for part in parts)
