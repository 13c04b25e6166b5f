"""The learning rate follows the time that is over."""

from __future__ import annotations

from itertools import pairwise

import pytest

from training.schedule import FLOOR, WARM_UP, learning_rate


def test_it_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [learning_rate(2e-3, step / 1000) for step in range(1001)]
    top = rates.index(max(rates))
    assert top / 1000 == pytest.approx(WARM_UP, abs=2e-3) and rates[top] == pytest.approx(2e-3, rel=1e-3)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(2e-3 * FLOOR) == learning_rate(2e-3, 1.2)
