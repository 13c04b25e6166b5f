"""Rounds the four linears of each layer to int8 as the released quantized checkpoints are: one float16 scale a row.

It makes numbers, not files; `export` writes them.
"""

from __future__ import annotations

import torch

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, columns] -> int8 of that shape and float16 scales [rows]; rounding in float16, half to even."""
    half = weight.half()
    scale = half.abs().amax(dim=1) / 127
    return (half / scale[:, None]).round().to(torch.int8), scale


def quantized_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in the int8 layout: X.weight int8, X.weight_scale float16, all else float16."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if is_quantized(name):
            result[name], result[f"{name}_scale"] = quantize_rows(tensor)
        else:
            result[name] = tensor.half()
    return result


def dequantized_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The float32 weights that an int8 state stands for."""
    scales = {name.removesuffix("_scale"): tensor for name, tensor in state.items() if name.endswith("_scale")}
    return {
        name: tensor.float() * scales[name].float()[:, None] if name in scales else tensor.float()
        for name, tensor in state.items()
        if not name.endswith("_scale")
    }


def is_quantized(name: str) -> bool:
    """Whether the parameter of this name is one of those matrices."""
    return any(name.endswith(f"{linear}.weight") for linear in LINEARS)
