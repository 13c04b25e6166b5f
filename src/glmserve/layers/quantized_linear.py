"""Matrix products with quantized weights, and the choice of how each is made.

Weights stay packed in memory.  On a CPU no model is built of these: there the loader writes the rounded numbers into plain weights.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from glmserve.kernels.activation import gelu_tanh
from glmserve.kernels.few_rows_linear import few_rows_linear, few_rows_parts, serves_few_rows
from glmserve.kernels.norm import Summands
from glmserve.kernels.one_row_linear import is_one_row, one_row_linear
from glmserve.kernels.quantized_linear import dequantize, quantized_linear_torch
from glmserve.kernels.scaled_rows import ScaledRows, finish, finish_gelu, scale_rows, scaled_product
from glmserve.layers.linear import Linear
from glmserve.layers.quantization import PACKED_DTYPES, packed_columns
from glmserve.protocol.weight_format import WeightFormat

Way = Literal["one_row", "few_rows", "scaled", "dequantized", "plain"]

_COLUMNS_OF_A_SCALED_PRODUCT = 16  # torch._scaled_mm takes whole sixteens


def make_linear(in_features: int, out_features: int, weight_format: WeightFormat, bias: bool = True) -> Linear | QuantizedLinear:
    """The layer of that format, its tensors left uninitialised."""
    if weight_format == "none":
        return Linear(in_features, out_features, bias)
    return QuantizedLinear(in_features, out_features, weight_format, bias)


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
        way = self.way(x)
        if way == "scaled":
            rows = scale_rows(x)
            return finish(scaled_product(rows, self.weight), rows.scale, self.scale[:, 0], self.bias, x.dtype)
        return self._product(way, x, gelu=False)

    def gelu(self, x: torch.Tensor) -> torch.Tensor | ScaledRows:
        """tanh GELU of the product, in one pass where that is possible; as scaled rows where the next product would scale them anyway."""
        way = self.way(x)
        if way == "scaled" and self.bias is not None:
            rows = scale_rows(x)
            return finish_gelu(scaled_product(rows, self.weight), rows.scale, self.scale[:, 0], self.bias)
        return self._product(way, x, gelu=True)

    def summands(self, x: torch.Tensor | ScaledRows) -> torch.Tensor | Summands:
        """The product, or what a LayerNorm has to do to finish it."""
        if isinstance(x, ScaledRows):
            return Summands(scaled_product(x, self.weight)[None], self.bias, x.scale, self.scale[:, 0])
        way = self.way(x)
        if way == "scaled":
            return self.summands(scale_rows(x))
        if way == "few_rows":
            return Summands(few_rows_parts(x, self.weight, self.scale), self.bias)
        return self._product(way, x, gelu=False)

    def way(self, x: torch.Tensor) -> Way:
        """How the product with these rows is made.

        one_row, few_rows: the packed weight is read, which is what counts while few rows share it.  scaled: fp8 times fp8.  dequantized:
        the weight is made plain first, which is what counts when arithmetic does.  plain: everything in float32, on a CPU.
        """
        if not x.is_cuda:
            return "plain"
        if is_one_row(x, self.weight, self.scale):
            return "one_row"
        if serves_few_rows(x, self.weight, self.scale):
            return "few_rows"
        whole = self.in_features % _COLUMNS_OF_A_SCALED_PRODUCT == 0 and self.out_features % _COLUMNS_OF_A_SCALED_PRODUCT == 0
        return "scaled" if self.weight_format == "fp8" and whole and _multiplies_fp8(x.device) else "dequantized"

    def _product(self, way: Way, x: torch.Tensor, gelu: bool) -> torch.Tensor:
        if way == "one_row":
            return one_row_linear(x, self.weight, self.scale, self.bias, gelu)
        if way == "few_rows":
            return few_rows_linear(x, self.weight, self.scale, self.bias, gelu)
        if way == "plain":
            return quantized_linear_torch(x, self.weight, self.scale, self.bias, gelu)
        out = F.linear(x, dequantize(self.weight, self.scale, x.dtype), self.bias)
        return gelu_tanh(out) if gelu else out


@functools.cache
def _multiplies_fp8(device: torch.device) -> bool:
    """Whether the matrix units take 8-bit floats: from sm_89 on."""
    return torch.cuda.get_device_capability(device) >= (8, 9)
