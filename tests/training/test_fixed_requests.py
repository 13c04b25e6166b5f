"""The committed requests, and how an answer's shape is judged."""

from __future__ import annotations

from collections import Counter

import pytest

from training.evaluate import copied_lines, form_accuracy
from training.fixed_requests import FixedRequest, read_requests, shape_of

QUATRAIN = FixedRequest("五言绝句", "写一首五言绝句", (), (((5, 5), (5, 5)),))
RIGHT = "白日依山尽,黄河入海流。\n欲穷千里目,更上一层楼。"


def test_there_are_500_and_most_have_a_shape() -> None:
    requests = read_requests()
    groups = {"五言绝句": 70, "七言绝句": 70, "五言律诗": 70, "七言律诗": 70, "词": 80, "下句": 60, "换体": 60, "闲谈": 20}
    assert Counter(request.group for request in requests) == groups
    assert all(bool(request.patterns) == (request.group != "闲谈") for request in requests)
    assert all(("[Round 1]" in request.prompt) == (request.group == "换体") for request in requests)


@pytest.mark.parametrize(
    "wrong",
    ["", RIGHT.replace("白", ""), RIGHT.splitlines()[0], RIGHT + "\n更上一层楼。", RIGHT.replace(",", ""), RIGHT.rstrip("。")],
    ids=["empty", "a character less", "a line less", "a line more", "no halves", "no end"],
)
def test_another_shape_is_wrong(wrong: str) -> None:
    assert not QUATRAIN.is_met_by(wrong)


def test_the_right_shape_is_right_with_either_marks() -> None:
    assert QUATRAIN.is_met_by(RIGHT) and QUATRAIN.is_met_by(RIGHT.replace(",", "，"))
    assert shape_of("天!") == ((1,),)


def test_accuracy_counts_small_talk_apart() -> None:
    talk = FixedRequest("闲谈", "你好", (), ())
    assert form_accuracy([QUATRAIN, QUATRAIN, talk], [RIGHT, "", "你好"]) == {"五言绝句": (1, 2), "all": (1, 2), "闲谈": (1, 1)}


def test_copied_lines_are_counted_without_marks_and_without_what_was_given() -> None:
    known = {"白日依山尽黄河入海流", "欲穷千里目更上一层楼"}
    assert copied_lines([RIGHT], ["登楼"], known) == (2, 2)
    assert copied_lines([RIGHT], ["续写：白日依山尽，黄河入海流"], known) == (1, 1)
    assert copied_lines(["另有一句,此句新成。"], [""], known) == (0, 1)
