"""Scales for fp8 that are known before a row is: from what a LayerNorm and a product can give at most.

LayerNorm gives weight * n + bias with |n| <= sqrt(width), so no number exceeds sqrt(width) |weight| + |bias|; and by Cauchy and Schwarz a
product's output stays below sqrt(width) |weight * w| + |bias| |w| + its own bias, w being the output's row.  Such bounds are some 60 times
what is usual.  A float is as fine there, but for the smallest numbers; where these would be missed there are no such scales.  What they
are good for: the product may apply GELU and round as it writes (kernels/blas_product.py), and attention, whose means of values exceed no
value, as it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from glmserve.kernels.blas_product import GeluLevels
from glmserve.kernels.scaled_rows import LARGEST_FP8

_SMALLEST_LEVEL = 2.0**-9  # of float8_e4m3fn
_STEP = _SMALLEST_LEVEL / LARGEST_FP8  # the smallest number beside the largest
_FINEST = 0.01  # the smallest level stands for no more than this share of a usual number
_FINEST_OF_MEANS, _MEANS_OF = 0.05, 1024  # or of the mean of so many usual and unrelated ones, which is far smaller
_SPREAD = 64.0  # of an fp8 weight's scales: beyond, the rows of small numbers would lose theirs
_ROUNDED = 17 / 16  # how much rounding to fp8 may enlarge a number
_NUMBERS_AT_ONCE = 2**24


class FixedScales(NamedTuple):
    """rows, out: float32 of one number, the scale of the LayerNorm's rows and of GELU's result; gelu: the product between the two."""

    rows: torch.Tensor
    out: torch.Tensor
    gelu: GeluLevels


def share_scale(weight: torch.Tensor, scale: torch.Tensor) -> bool:
    """Give all outputs the largest of their scales, in place, and say whether that was possible.

    weight: float8_e4m3fn [outputs, width]; scale: float32 [outputs, 1], powers of two.  So only exponents change, and nothing is rounded
    but what becomes smaller than the smallest level.
    """
    largest = scale.max()
    if float(largest / scale.min()) > _SPREAD:
        return False
    for rows in _parts(weight):
        weight[rows] = (weight[rows].float() * (scale[rows] / largest)).to(weight.dtype)
    scale.fill_(largest)
    return True


def fixed_scales(
    norm_weight: torch.Tensor, norm_bias: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> FixedScales | None:
    """Scales for LayerNorm -> product -> GELU, or None where they would be too coarse.

    norm_weight, norm_bias: [width]; weight, scale: as `share_scale` left them; bias: [outputs].
    """
    norm_weight, norm_bias = norm_weight.float(), norm_bias.float()
    root = weight.shape[1] ** 0.5
    most_rows = (root * norm_weight.abs() + norm_bias.abs()).max()
    usual_rows = norm_weight.square().mean().sqrt()
    reach = [_reach(weight[rows].float() * scale[rows], norm_weight, norm_bias, root) + bias[rows].float().abs() for rows in _parts(weight)]
    most_out = torch.cat(reach).max()
    if float(most_rows * _STEP) > _FINEST * float(usual_rows) or float(most_out * _STEP) > _FINEST:  # GELU bends at 1
        return None
    rows_scale, out_scale = most_rows / LARGEST_FP8, most_out / LARGEST_FP8
    return FixedScales(rows_scale, out_scale, GeluLevels(rows_scale, scale[0, 0].clone(), bias, 1 / out_scale))


def fixed_mean_scale(
    norm_weight: torch.Tensor, norm_bias: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor | None:
    """The scale, float32 of one number, for weighted means of what LayerNorm -> product gives, or None where it would be too coarse.

    norm_weight, norm_bias: [width]; weight: float8_e4m3fn [outputs, width]; scale: float32 [outputs, 1]; bias: [outputs].
    """
    norm_weight, norm_bias = norm_weight.float(), norm_bias.float()
    most, squares = norm_weight.new_zeros(()), norm_weight.new_zeros(())
    for rows in _parts(weight):
        numbers, added = weight[rows].float() * scale[rows], bias[rows].float()
        most = torch.maximum(most, (_reach(numbers, norm_weight, norm_bias, weight.shape[1] ** 0.5) + added.abs()).max())
        squares += (numbers * norm_weight).square().sum()
    most *= _ROUNDED  # the values are rounded once more where K/V are in fp8
    usual = (squares / weight.shape[0]).sqrt()
    if float(most * _STEP) > _FINEST_OF_MEANS * float(usual) / _MEANS_OF**0.5:
        return None
    return most / LARGEST_FP8


def _reach(numbers: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, root: float) -> torch.Tensor:
    """[rows of `numbers`]: the most that each can give."""
    length: torch.Tensor = (numbers * norm_weight).square().sum(dim=1).sqrt()
    return _ROUNDED * (root * length + numbers.abs() @ norm_bias.abs())


def _parts(weight: torch.Tensor) -> Iterator[slice]:
    """Rows of a matrix, few enough at a time that they take little memory as float32."""
    step = max(1, _NUMBERS_AT_ONCE // weight.shape[1])
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))
