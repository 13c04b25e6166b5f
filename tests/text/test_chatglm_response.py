"""The released post-processing of answers, whole and streamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from glmserve.text.chatglm_response import ResponseStream, process_response

PARTS = st.lists(
    st.text("你一龥龦a1,!:;?[]年 \n\u3000训练时间，", max_size=4)
    | st.sampled_from(["[[训练时间]]", "[[训练时", "间]]", "  ", ",你", "[[[训练时间]]"])
)


def released(text: str) -> str:
    """The steps one after the other, as the released code takes them."""
    text = text.strip().replace("[[训练时间]]", "2023年")
    for mark, wide in zip(",!:;?", "，！：；？", strict=True):
        text = re.sub(rf"([\u4e00-\u9fff]){re.escape(mark)}", rf"\1{wide}", text)
        text = re.sub(rf"{re.escape(mark)}([\u4e00-\u9fff])", rf"{wide}\1", text)
    return text


def streamed(parts: list[str]) -> str:
    stream = ResponseStream()
    return "".join(map(stream.push, parts)) + stream.finish()


def test_golden_responses(golden: Callable[[str], Any]) -> None:
    for case in golden("process_response"):
        assert process_response(case["inp"]) == case["out"]
        assert streamed(list(case["inp"])) == case["out"]
    for case in golden("chat_cases"):
        assert process_response(case["raw_decode"]) == case["response"]


@given(parts=PARTS)
@example(parts=["你!!你"])
@example(parts=[",", "[[训练时间]]", ",a"])
def test_one_pass_is_what_the_released_steps_give(parts: list[str]) -> None:
    assert process_response("".join(parts)) == released("".join(parts))


@given(parts=PARTS)
@example(parts=["你", ",", "!", "好"])
@example(parts=["a,", " ", ""])
@example(parts=["[[训练时间", "]], ok"])
def test_deltas_join_to_the_processed_text(parts: list[str]) -> None:
    assert streamed(parts) == process_response("".join(parts))


def test_only_what_is_undecided_waits() -> None:
    stream = ResponseStream()
    assert [stream.push(part) for part in [" ", "a", ",", "b", "!", "你", "?", " ", "\n", "好"]] == [
        *("", "a", "", ",b", "", "！你", "？", "", "", " \n好"),
    ]


def test_the_placeholder_waits_until_it_is_whole() -> None:
    stream = ResponseStream()
    assert [stream.push(part) for part in ["于[", "[训练", "时间]", "]训练[", "["]] == ["于", "", "", "2023年训练", ""]
    assert stream.finish() == "[["
