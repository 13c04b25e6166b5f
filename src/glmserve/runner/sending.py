"""Numbers of the host on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def sent(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """torch.tensor(values, dtype, device), but nobody waits for it: that waits until all steps before have ended."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
