"""Random layers for `layer_stream`, at ChatGLM-6B's width or narrower."""

from __future__ import annotations

import torch

from glmserve.kernels.layer_stream import Norm, Product, Stretch
from glmserve.kernels.scaled_rows import ScaledRows, scale_rows_torch, scale_tiles_torch
from tests.kernels.cases import Device


def random_stretch(on: Device, hidden_size: int, inner_size: int, fp8: bool) -> Stretch:
    def product(out_features: int, in_features: int) -> Product:
        weight, bias = on.randn(out_features, in_features, dtype=torch.float32) / in_features**0.5, on.randn(out_features) * 0.1
        if not fp8:
            return Product(weight.to(on.dtype), None, bias)
        rounded = scale_rows_torch(weight)
        return Product(rounded.values, rounded.scale[:, None].contiguous(), bias)

    def norm() -> Norm:
        return Norm(1 + 0.1 * on.randn(hidden_size), 0.1 * on.randn(hidden_size))

    return Stretch(
        product(hidden_size, hidden_size), norm(), product(inner_size, hidden_size), product(hidden_size, inner_size), norm(),
        product(3 * hidden_size, hidden_size), 7.5, 1e-5,
    )  # fmt: skip


def random_rows(on: Device, rows: int, hidden_size: int, fp8: bool) -> tuple[torch.Tensor | ScaledRows, torch.Tensor]:
    mixed = on.randn(rows, hidden_size)
    return scale_tiles_torch(mixed) if fp8 else mixed, on.randn(rows, hidden_size)
