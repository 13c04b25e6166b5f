"""Sampling parameters refuse what no sampler can honour, and name the field."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.sampling_params import SamplingParams, seed_of_choice


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -2),
        ("top_k", 2**31),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 0.001),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -2.5),
        ("n", 0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),  # above the default max_tokens
        ("logprobs", 21),
        ("seed", 2**64),
        ("stop", ["a", ""]),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1001]),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 101.0}),
    ],
)
def test_out_of_range_names_the_field(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=param) as caught:
        SamplingParams(**{param: value})
    assert caught.value.param == param


def test_what_people_write_is_understood() -> None:
    params = SamplingParams(stop="\n", top_k=-1, max_tokens=None)  # type: ignore[arg-type]
    assert params.stop == ["\n"]
    assert params.top_k == 0


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(seed=np.int64(42), top_k=np.int32(5), max_tokens=np.int64(7), logit_bias={np.int64(3): np.float32(1)})  # type: ignore[arg-type,dict-item]
    assert (params.seed, params.top_k, params.max_tokens, params.logit_bias) == (42, 5, 7, {3: 1.0})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    "given", [{"seed": 3.0}, {"n": 2.0}, {"top_k": 5.5}, {"max_tokens": 3.5}, {"logprobs": 1.5}, {"logit_bias": {"5": 1}}]
)
def test_what_is_no_whole_number_is_told_of(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="wrong type"):
        SamplingParams(**given)


def test_choices_have_seeds_of_their_own() -> None:
    assert [seed_of_choice(7, number) for number in range(3)] == [7, 8, 9]
    assert seed_of_choice(None, 3) is None
    assert seed_of_choice(2**64 - 1, 2) == 1


def test_temperature_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0.0).greedy
    assert not SamplingParams().greedy


def test_defaults_are_not_shared() -> None:
    SamplingParams().stop.append("leak")
    assert SamplingParams().stop == []


@pytest.mark.parametrize("params", [{"temperature": "hot"}, {"top_p": [1]}, {"max_tokens": "many"}])
def test_a_value_of_the_wrong_type_is_a_users_mistake(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="wrong type"):
        SamplingParams(**params)
