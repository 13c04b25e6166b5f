"""Angles are position times frequency, for every position and axis."""

from __future__ import annotations

import math

import torch

from glmserve.layers.rotary import RotaryTable
from glmserve.models.chatglm.model import rotary_frequencies


def test_lookup_gives_the_angle_of_each_position_and_axis() -> None:
    frequencies = torch.tensor([1.0, 0.25, 0.001])
    table = RotaryTable(frequencies, 100, torch.device("cpu"))
    positions = torch.tensor([[0, 5], [99, 1], [7, 7]])
    cos, sin = table.lookup(positions)
    assert cos.shape == sin.shape == (3, 2, 3) and cos.is_contiguous()
    for token, axes in enumerate(positions.tolist()):
        for axis, position in enumerate(axes):
            for pair, frequency in enumerate(frequencies.tolist()):
                assert math.isclose(cos[token, axis, pair], math.cos(position * frequency), abs_tol=1e-5)
                assert math.isclose(sin[token, axis, pair], math.sin(position * frequency), abs_tol=1e-5)


def test_positions_in_any_memory_order() -> None:
    table = RotaryTable(torch.tensor([0.5]), 10, torch.device("cpu"))
    positions = torch.tensor([[1, 2, 3], [4, 5, 6]]).T
    for part, same in zip(table.lookup(positions), table.lookup(positions.clone(memory_format=torch.contiguous_format)), strict=True):
        assert part.is_contiguous() and torch.equal(part, same)


def test_chatglms_frequencies_are_rounded_to_float16() -> None:
    """As its code builds them; exact ones are off by a quarter at 1,500 tokens (golden README)."""
    frequencies = rotary_frequencies(128)
    assert frequencies.shape == (32,) and frequencies.dtype == torch.float32
    exact = torch.tensor([10000 ** (-2 * i / 64) for i in range(32)])
    assert torch.equal(frequencies, frequencies.half().float())
    assert not torch.equal(frequencies, exact) and torch.allclose(frequencies, exact, rtol=2**-10)
