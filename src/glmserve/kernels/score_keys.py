"""Scores as integers of the same order, inside a kernel, so that a search among scores can halve an interval."""

from __future__ import annotations

import torch

from glmserve.kernels.backend import tl, triton

LOW_ZEROS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # bits that are always zero once the score is in float32


@triton.jit
def key_of(score, LOW_ZEROS: tl.constexpr):
    """int32, ordered as the scores are."""
    bits = score.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> LOW_ZEROS


@triton.jit
def score_of(key, LOW_ZEROS: tl.constexpr):
    """The float32 of a key, of any integer type."""
    bits = key.to(tl.int32) << LOW_ZEROS
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return (bits >> LOW_ZEROS << LOW_ZEROS).to(tl.float32, bitcast=True)  # a negative key's low bits are ones now
