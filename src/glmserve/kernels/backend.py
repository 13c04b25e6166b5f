"""Triton where it can run, and which of the two paths a tensor takes.

Elsewhere `triton.jit` leaves the kernels as plain functions that nobody calls.
With TRITON_INTERPRET=1 the kernels run on CPU tensors, which is how tests without a GPU compare them with their twins.
"""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace
from typing import Any

import torch

# Triton's own variable, read before its import.  Where no kernel can run, importing it costs a second and leaves noise at exit.
_RUNS_HERE = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"

if _RUNS_HERE:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
else:
    triton = SimpleNamespace(
        jit=lambda function=None, **_: function or (lambda decorated: decorated), cdiv=lambda a, b: -(-a // b), knobs=None
    )
    tl = SimpleNamespace(constexpr=None)
    gdc_launch_dependents = gdc_wait = None

_MOST_ROWS_FOR_EARLY_START = 256
_plain = False  # one engine a process; see choose_kernels

__all__ = [
    "choose_kernels",
    "early_start",
    "gdc_launch_dependents",
    "gdc_wait",
    "has_large_shared_memory",
    "has_triton_of",
    "interpreting",
    "next_power_of_2",
    "on_gpu",
    "prefetch_rows",
    "tl",
    "triton",
    "use_triton",
]


def interpreting() -> bool:
    """True where Triton runs kernels on the CPU (TRITON_INTERPRET=1)."""
    knobs: Any = getattr(triton, "knobs", None)
    return bool(knobs and knobs.runtime.interpret)


def has_triton_of(release: str) -> bool:
    """Whether kernels run on a GPU here and Triton's version begins with `release`."""
    return bool(_RUNS_HERE and not interpreting() and triton.__version__.startswith(release))


def choose_kernels(plain: bool) -> None:
    """`--kernels plain`: from now on ops with a plain twin take it on a GPU too.  Attention over the paged cache and quantized
    products have none that a GPU would want, and stay."""
    global _plain
    _plain = plain


def use_triton(tensor: torch.Tensor) -> bool:
    """True where the Triton path of an op with a plain twin serves this tensor."""
    return on_gpu(tensor) and not _plain


def on_gpu(tensor: torch.Tensor) -> bool:
    """True where only kernels will do."""
    return tensor.is_cuda


def early_start(x: torch.Tensor) -> dict[str, bool]:
    """Launch options of a kernel over the rows of `x`: whether it may start while the kernel before it still runs.

    Such a kernel loads weights first, then calls gdc_wait() before it touches anything another kernel wrote (programmatic dependent
    launch, sm_90 and later).  With many rows its waiting programs would take the room of those that still work, so then it may not.
    """
    early = x.shape[0] <= _MOST_ROWS_FOR_EARLY_START and _has_early_start(x.device)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@functools.cache
def _has_early_start(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def has_large_shared_memory(device: torch.device) -> bool:
    """Whether three stages of 64 keys and values of 128 numbers fit: on A100 and Hopper, not on sm_86 and sm_89."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor >= 160 * 1024


@triton.jit
def prefetch_rows(row_at, BYTES: tl.constexpr):
    """Ask for the first BYTES, 128 times a power of two, at each of these addresses; they go no further than the L2 cache.

    For a kernel that was started early: waiting, it keeps the memory busy for itself, and needs neither registers nor shared memory for it.
    """
    address = row_at.to(tl.int64)[:, None] + (tl.arange(0, BYTES // 128) * 128)[None, :]
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
