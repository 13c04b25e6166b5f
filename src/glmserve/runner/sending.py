"""Numbers of the host on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def sent(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """torch.tensor(values, dtype, device) without a stop: that call waits until the GPU has ended all steps before.

    The driver has read the values when this returns.  Above 64 KB it may wait after all (CUDA, API synchronization behavior).
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
