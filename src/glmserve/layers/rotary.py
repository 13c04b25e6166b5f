"""Tables of rotary angles.  Where a table is built is also where its rounding is decided."""

from __future__ import annotations

import torch


class RotaryTable:
    """cos and sin for every position, looked up once a step.  `inverse_frequencies`: float32 [pairs]."""

    def __init__(self, inverse_frequencies: torch.Tensor, num_positions: int, device: torch.device) -> None:
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse_frequencies[None]
        self.cos = angles.cos().to(device)  # [num_positions, pairs]
        self.sin = angles.sin().to(device)

    def lookup(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [num_tokens, axes, pairs] each, of positions [num_tokens, axes]."""
        positions = positions.contiguous()  # the result takes the order of its index, and kernels read it densely
        return self.cos[positions], self.sin[positions]
