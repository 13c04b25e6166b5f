"""Triton's Gluon, where there is the release that our kernels are tested with.

Gluon is Triton's lower level: who fetches, who multiplies and what lies where is said and not found.  Its names change with Triton's
releases.  Elsewhere `gluon.jit` leaves the kernels as plain functions that nobody calls; each has a path without Gluon beside it.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch

from glmserve.kernels.backend import has_triton_of

TESTED_TRITON = "3.6."
HAS_GLUON = has_triton_of(TESTED_TRITON)

if HAS_GLUON:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
else:
    gl = tma = mbarrier = fence_async_shared = warpgroup_mma = warpgroup_mma_wait = TensorDescriptor = None
    gluon = SimpleNamespace(
        jit=lambda function=None, **_: function or (lambda decorated: decorated), constexpr_function=lambda function: function
    )

__all__ = [
    "HAS_GLUON",
    "TensorDescriptor",
    "fence_async_shared",
    "gl",
    "gluon",
    "is_hopper",
    "mbarrier",
    "num_multiprocessors",
    "tma",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether the matrix instructions of sm_90 are there, which are of no other chip."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count
