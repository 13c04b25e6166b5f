"""Places are counted exactly, whatever order things happen in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmserve.protocol.errors import EngineUnavailableError, GlmserveError, InvalidRequestError, OverloadedError
from glmserve.server.admission import Admission, Place


def test_both_bounds_hold() -> None:
    admission = Admission(max_requests=2, max_tokens=100)
    first = admission.reserve(40 * 4)
    with pytest.raises(OverloadedError, match="100 prompt tokens"):
        admission.reserve(80 * 4)
    admission.reserve(0)
    with pytest.raises(OverloadedError, match="2 requests") as caught:
        admission.reserve(0)
    assert caught.value.http_status == 503 and caught.value.retry_after >= 1
    first.release()
    admission.reserve(0)
    assert admission.num_rejected == 2


def test_a_long_prompt_alone_always_fits() -> None:
    admission = Admission(max_requests=2, max_tokens=10)
    place = admission.reserve(4000)
    place.correct(1, 5000)
    assert admission.num_tokens == 5000


def test_more_answers_than_there_will_ever_be_room_for() -> None:
    place = Admission(max_requests=2, max_tokens=10).reserve(0)
    with pytest.raises(InvalidRequestError, match="at most 2"):
        place.correct(3, 1)


def test_leaving_the_block_releases_unless_kept() -> None:
    admission = Admission(max_requests=5, max_tokens=100)
    with pytest.raises(RuntimeError), admission.reserve(0):
        raise RuntimeError
    assert admission.num_requests == admission.num_tokens == 0
    with admission.reserve(0) as place:
        place.keep()
    assert admission.num_requests == 1
    place.release()
    place.release()
    assert admission.num_requests == admission.num_tokens == 0


def test_closed_takes_nothing() -> None:
    admission = Admission(max_requests=5, max_tokens=100)
    admission.close()
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        admission.reserve(0)


@given(st.lists(st.tuples(st.sampled_from(["reserve", "correct", "release"]), st.integers(0, 5), st.integers(0, 60)), max_size=60))
def test_counts_are_the_sum_of_the_places(steps: list[tuple[str, int, int]]) -> None:
    admission = Admission(max_requests=4, max_tokens=100)
    places: list[Place] = []
    for action, number, tokens in steps:
        try:
            if action == "reserve":
                places.append(admission.reserve(tokens * 4))
            elif places and action == "correct":
                places[number % len(places)].correct(max(1, number), tokens)
            elif places:
                places.pop(number % len(places)).release()
        except GlmserveError:
            pass
        assert admission.num_requests == sum(place.num_requests for place in places)
        assert admission.num_tokens == sum(place.num_tokens for place in places)
        assert admission.num_requests <= 4
        assert admission.num_tokens <= 100 or len(places) == 1
