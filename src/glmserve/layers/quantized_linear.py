"""Matrix products with quantized weights, and the choice of how each is made.

Weights stay packed in memory.  On a CPU no model is built of these: there the loader writes the rounded numbers into plain weights.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from glmserve.kernels.activation import gelu_tanh
from glmserve.kernels.quantized_linear import dequantize, quantized_linear
from glmserve.layers.linear import Linear
from glmserve.layers.quantization import PACKED_DTYPES, packed_columns
from glmserve.protocol.weight_format import WeightFormat

Way = Literal["packed", "dequantized"]

_MOST_ROWS_PACKED = 64


def make_linear(in_features: int, out_features: int, weight_format: WeightFormat, bias: bool = True) -> Linear | QuantizedLinear:
    """The layer of that format, its tensors left uninitialised."""
    if weight_format == "none":
        return Linear(in_features, out_features, bias)
    return QuantizedLinear(in_features, out_features, weight_format, bias)


def choose(num_rows: int, weight_format: WeightFormat, device: torch.device) -> Way:
    """How a product is made.

    packed: the kernel reads the packed weight, which is what counts while few rows share it.  dequantized: the weight is made plain first
    and the product is a plain one, which is what counts when arithmetic does.
    """
    return "packed" if num_rows <= _MOST_ROWS_PACKED else "dequantized"


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W packed as kernels/quantized_linear.py says: `weight` and `scale`; `bias` in the model's dtype."""

    def __init__(self, in_features: int, out_features: int, weight_format: WeightFormat, bias: bool = True) -> None:
        """Raises ValueError where the format cannot hold rows of `in_features`."""
        super().__init__()
        self.in_features, self.out_features, self.weight_format = in_features, out_features, weight_format
        packed = torch.empty(out_features, packed_columns(weight_format, in_features), dtype=PACKED_DTYPES[weight_format])
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] -> [num_tokens, out_features]."""
        return self._product(x, gelu=False)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """tanh GELU of the product, in one pass where that is possible."""
        return self._product(x, gelu=True)

    def _product(self, x: torch.Tensor, gelu: bool) -> torch.Tensor:
        if choose(x.shape[0], self.weight_format, x.device) == "packed":
            return quantized_linear(x, self.weight, self.scale, self.bias, gelu)
        out = F.linear(x, dequantize(self.weight, self.scale, x.dtype), self.bias)
        return gelu_tanh(out) if gelu else out
