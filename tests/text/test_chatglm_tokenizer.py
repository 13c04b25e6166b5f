"""ChatGLM-6B's tokenizer against the recorded behaviour of the released code, and with the small model of this repository."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmserve.models.catalog import read_spec
from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.text.chatglm_tokenizer import SPECIAL_IN_TEXT, ChatGLMTokenizer
from tests.text.conftest import SMALL, released_spec

SPELLED_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_IN_TEXT)))
ANY_SPECIAL = [*SPECIAL_IN_TEXT, "[gMASK]", "[sMASK]", "<unused_0>", "<ENC>", "<dBLOCK>", "<s>", "</s>"]
TEXT = st.lists(
    st.sampled_from([*ANY_SPECIAL, "<n>", "<|tab|>", "<|blank_5|>", "  ", "\n", "\t", "你好", "a", " ", "<", ">"]) | st.text(max_size=5)
)


def expected_ids(case: dict[str, Any]) -> list[list[int]]:
    """Segmentation of one long word differs between versions of sentencepiece; the data holds both."""
    return [case["input_ids"], case.get("input_ids_sentencepiece_0_2_3", case["input_ids"])]


def test_golden_encoding(released_open: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("tokenizer_cases")["cases"]:
        ids = released_open.encode(case["text"])
        assert ids in expected_ids(case), case["text"]
        assert released_open.encode(case["text"], add_special_tokens=False) == ids[:-2]


def test_golden_encoding_without_special_text_is_the_same_by_default(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("tokenizer_cases")["cases"]:
        if not SPELLED_SPECIAL.search(case["text"]):
            assert released.encode(case["text"]) in expected_ids(case), case["text"]


def test_golden_default_reads_special_text_as_sentencepiece_does(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    cases = [case for case in golden("tokenizer_cases")["cases"] if SPELLED_SPECIAL.search(case["text"])]
    assert cases
    for case in cases:
        assert released.encode(case["text"], add_special_tokens=False) == case["sp_only_encode"]


def test_golden_pairs(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("tokenizer_cases")["pairs"]:
        assert released.encode_pair(case["a"], case["b"]) == case["input_ids"]


def test_golden_decoding(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    data = golden("tokenizer_cases")
    for case in data["decode"]:
        assert released.decode(case["ids"], skip_special_tokens=False) == case["text"]
        assert released.decode(case["ids"]) == case["text_skip_special"]
    for case in data["incremental_decode"]:
        assert released.decode(case["ids"]) == case["text"]
    for case in data["cases"]:
        assert released.decode(case["no_special"], skip_special_tokens=False) == case["decode_no_special"]
        assert released.decode(case["input_ids"], skip_special_tokens=False) == case["decode_all"]
        assert released.decode(case["input_ids"]) == case["decode_all_skip_special"]


def test_golden_old_vocabulary(shared: Path, golden: Callable[[str], Any]) -> None:
    old = ChatGLMTokenizer(shared / "tokenizer", released_spec(150528), allow_special_tokens=True)
    for case in golden("tokenizer_cases")["cases"]:
        if "input_ids_sentencepiece_0_2_3" not in case:
            assert old.encode(case["text"]) == case["old_input_ids"]
        assert old.decode(case["old_input_ids"]) == case["decode_all_skip_special"]
    assert old.decode([7, *old.encode("你好")]) == "你好"  # an image token has no text
    assert old.token_bytes(7) == b""


def test_golden_padded_batches(released_open: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("padded_batches"):
        rows = [released_open.encode(text) for text in case["texts"]]
        width = max(map(len, rows))
        assert [[released_open.pad_token_id] * (width - len(row)) + row for row in rows] == case["input_ids"]


def test_golden_special_ids(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for piece, token_id in golden("tokenizer_cases")["info"]["special_ids"].items():
        text = released.token_text(token_id)
        assert text == piece or piece in ("<n>", "<|tab|>") or text.isspace()


@pytest.mark.parametrize("text", ANY_SPECIAL)
def test_what_users_write_never_becomes_special(small: ChatGLMTokenizer, text: str) -> None:
    """A <sop> in a message would move the border between context and answer."""
    ids = small.encode(f"a {text} b", add_special_tokens=False)
    assert small.decode(ids) == f"a {text} b"
    assert "".join(map(small.token_text, ids)).strip() == f"a {text} b"


@given(parts=TEXT)
def test_no_text_gives_a_special_id(small: ChatGLMTokenizer, parts: list[str]) -> None:
    special = {small.encode_pair("", "")[index] for index in (0, 1, 2)} | {0, 1, 2, 3} | set(range(724, 732))
    assert special.isdisjoint(small.encode("".join(parts), add_special_tokens=False))


@given(text=st.text().filter(lambda text: not SPELLED_SPECIAL.search(text)))
def test_both_modes_agree_on_ordinary_text(small: ChatGLMTokenizer, small_open: ChatGLMTokenizer, text: str) -> None:
    assert small.encode(text) == small_open.encode(text)


def test_the_released_behaviour_is_an_option(small_open: ChatGLMTokenizer) -> None:
    sop = small_open.encode("")[1]
    assert small_open.encode("你 <sop> 好").index(sop) < len(small_open.encode("你 <sop> 好")) - 1
    assert small_open.decode(small_open.encode("你 <sop> 好")) == "你 好"  # the space is the one that begins each piece of text


@pytest.mark.parametrize("text", ["a<n>b", "a<|tab|>b", "a<|blank_5|>b"])
def test_spelled_out_blanks_read_as_blanks(small: ChatGLMTokenizer, text: str) -> None:
    """As released: harmless, for it gives what the user could as well have typed."""
    plain = {"a<n>b": "a\nb", "a<|tab|>b": "a\tb", "a<|blank_5|>b": "a     b"}[text]
    assert small.encode(text) == small.encode(plain)
    assert small.decode(small.encode(text)) == plain


@given(num_spaces=st.integers(2, 400))
def test_runs_of_spaces_survive(small: ChatGLMTokenizer, num_spaces: int) -> None:
    text = "a" + " " * num_spaces + "\n\tb"
    assert small.decode(small.encode(text)) == text


def test_chinese_emoji_and_rare_characters_survive(small: ChatGLMTokenizer) -> None:
    text = "你好👋, 𠮷野家 привет\n\n  def f(x):\n\treturn x"
    assert small.decode(small.encode(text)) == text


def test_prompt_ends_with_gmask_and_sop(small: ChatGLMTokenizer) -> None:
    spec = read_spec(SMALL)
    assert small.encode("你好")[-2:] == [spec.gmask_token_id, spec.bos_token_id]
    assert small.encode_pair("你好", "好")[-1] == spec.eos_token_ids[0]


def test_token_bytes_join_to_the_text(small: ChatGLMTokenizer) -> None:
    ids = small.encode("你好👋 x\n", add_special_tokens=False)
    assert b"".join(map(small.token_bytes, ids)).decode() == " 你好👋 x\n"


def test_ids_outside_the_vocabulary_are_named(small: ChatGLMTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="token id 1080 is outside"):
        small.decode([5, 1080])
    with pytest.raises(InvalidRequestError, match="-1"):
        small.token_text(-1)


def test_embedding_rows_without_a_piece_have_no_text(small: ChatGLMTokenizer) -> None:
    """A model of random weights generates them."""
    assert small.decode([*small.encode("你好"), 1079]) == "你好"
    assert small.token_text(1079) == ""


def test_a_lone_surrogate_is_the_users_mistake(small: ChatGLMTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="not valid Unicode"):
        small.encode("a\ud800b")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no ice_text\.model.*Copy it"):
        ChatGLMTokenizer(tmp_path, read_spec(SMALL))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ice_text.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelLoadError, match=r"ice_text\.model is not a sentencepiece model.*git lfs pull"):
        ChatGLMTokenizer(tmp_path, read_spec(SMALL))


def test_files_of_two_releases_are_refused(tmp_path: Path) -> None:
    shutil.copy(SMALL / "ice_text.model", tmp_path)
    config = json.loads((SMALL / "config.json").read_text())
    spec = read_spec(SMALL)
    with pytest.raises(ModelLoadError, match="do not belong together"):
        ChatGLMTokenizer(tmp_path, replace(spec, bos_token_id=config["bos_token_id"] + 1))
    with pytest.raises(ModelLoadError, match="do not belong together"):
        ChatGLMTokenizer(tmp_path, replace(spec, vocab_size=1000))
