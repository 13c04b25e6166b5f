"""Scales for fp8 that are known before a row is: from what a LayerNorm and a product can give at most.

LayerNorm gives weight * n + bias with |n| <= sqrt(width), so no number exceeds sqrt(width) |weight| + |bias|; and by Cauchy and Schwarz a
product's output stays below sqrt(width) |weight * w| + |bias| |w| + its own bias, w being the output's row.  Such bounds are some 60 times
what is usual.  A float is as fine there, but for the smallest numbers; where these would be missed there are no such scales.  What they
are good for: a product finishes its numbers as it writes, with GELU and in fp8 where that is wanted (kernels/blas_product.py), and
attention, whose means of values exceed no value, rounds as it ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from glmserve.kernels.layer_stream import Norm, Product
from glmserve.kernels.scaled_rows import LARGEST_FP8

_SMALLEST_LEVEL = 2.0**-9  # of float8_e4m3fn
_STEP = _SMALLEST_LEVEL / LARGEST_FP8  # the smallest number beside the largest
_FINEST = 0.01  # the smallest level stands for no more than this share of a usual number
_FINEST_OF_MEANS, _MEANS_OF = 0.05, 1024  # or of the mean of so many usual and unrelated ones, which is far smaller
_SPREAD = 64.0  # of an fp8 weight's scales: beyond, the rows of small numbers would lose theirs
_ROUNDED = 17 / 16  # how much rounding to fp8 may enlarge a number
_NUMBERS_AT_ONCE = 2**24


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


def norm_scale(norm: Norm) -> torch.Tensor | None:
    """The scale, float32 of one number, for a LayerNorm's rows, or None where it would be too coarse."""
    weight, bias = norm.weight.float(), norm.bias.float()
    most = (len(weight) ** 0.5 * weight.abs() + bias.abs()).max()
    return _scale(most, _FINEST * weight.abs().median())


def gelu_scale(norm: Norm, product: Product) -> torch.Tensor | None:
    """The same for what LayerNorm -> product -> GELU gives.  The product is one of fp8."""
    most, _ = _reach(norm, product)
    return _scale(most, torch.full_like(most, _FINEST))  # GELU bends at 1


def mean_scale(norm: Norm, product: Product) -> torch.Tensor | None:
    """The same for weighted means of what LayerNorm -> product gives.  The product is one of fp8."""
    most, usual = _reach(norm, product)
    most = _ROUNDED * most  # values are rounded once more where K/V are in fp8
    return _scale(most, _FINEST_OF_MEANS * usual / _MEANS_OF**0.5)


def _scale(most: torch.Tensor, finest: torch.Tensor) -> torch.Tensor | None:
    return most / LARGEST_FP8 if float(most * _STEP) <= float(finest) else None


def _reach(norm: Norm, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """The most that an output can give, and what is usual."""
    assert product.scale is not None
    norm_weight, norm_bias, root = norm.weight.float(), norm.bias.float().abs(), product.weight.shape[1] ** 0.5
    most, lengths = norm_weight.new_zeros(()), []
    for rows in _parts(product.weight):
        numbers = product.weight[rows].float() * product.scale[rows]
        lengths.append((numbers * norm_weight).square().sum(dim=1).sqrt())
        reach = _ROUNDED * (root * lengths[-1] + numbers.abs() @ norm_bias) + product.bias[rows].float().abs()
        most = torch.maximum(most, reach.max())
    return most, torch.cat(lengths).median()


def _parts(weight: torch.Tensor) -> Iterator[slice]:
    """Rows of a matrix, few enough at a time that they take little memory as float32."""
    step = max(1, _NUMBERS_AT_ONCE // weight.shape[1])
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))
