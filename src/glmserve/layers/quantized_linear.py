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
from glmserve.kernels.blas_product import Finish, finished_product, serves_blas_product
from glmserve.kernels.few_rows_linear import few_rows_linear, few_rows_parts, serves_few_rows
from glmserve.kernels.gluon_backend import is_hopper
from glmserve.kernels.layer_stream import Product
from glmserve.kernels.norm import Summands
from glmserve.kernels.one_row_linear import is_one_row, one_row_linear
from glmserve.kernels.quantized_linear import dequantize, quantized_linear_torch
from glmserve.kernels.scaled_few_rows import scaled_few_rows, scaled_few_rows_gelu, scaled_few_rows_parts, serves_scaled_few_rows
from glmserve.kernels.scaled_rows import TILE, ScaledProduct, ScaledRows, finish, finish_gelu, scale_rows, scale_rows_torch, scaled_product
from glmserve.layers.fixed_scales import share_scale
from glmserve.layers.linear import Linear
from glmserve.layers.quantization import PACKED_DTYPES, packed_columns
from glmserve.protocol.weight_format import WeightFormat

Way = Literal["one_row", "few_rows", "scaled", "dequantized", "plain"]

_COLUMNS_OF_A_SCALED_PRODUCT = 16  # torch._scaled_mm takes whole sixteens
_FEWEST_FIXED_ROWS = 65  # fewer have a kernel of their own


def make_linear(
    in_features: int, out_features: int, weight_format: WeightFormat, bias: bool = True, scaled_by_twos: bool = False
) -> Linear | QuantizedLinear:
    """The layer of that format, its tensors left uninitialised.

    scaled_by_twos: `by_twos` of `quantize_rows`, where the device makes something of it (`QuantizedLinear.fix_scales`).
    """
    if weight_format == "none":
        return Linear(in_features, out_features, bias)
    layer = QuantizedLinear(in_features, out_features, weight_format, bias)
    layer.scaled_by_twos = scaled_by_twos and is_hopper(layer.weight.device)
    return layer


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
        self.scaled_by_twos = False
        self._finish: Finish | None = None  # of many rows, where all scales are known before
        self.fixed_gelu_scale: torch.Tensor | None = None  # float32 of one number, of what `gelu` gives of many rows, where it is known

    def fix_scales(self, rows: torch.Tensor | None) -> None:
        """Once all weights are there: let the product of many rows finish its numbers as it writes, where that is possible.

        rows: the scale, float32 of one number, that its rows are going to have, if it is known.  The weight's scales must be by twos.
        """
        if rows is not None:
            self._finish = self._tried_finish(rows, None)

    def fix_gelu_scales(self, rows: torch.Tensor | None, out: torch.Tensor | None) -> None:
        """The same where `gelu` is what will be asked of it.  out: the scale of its result, if it is known."""
        if rows is not None and out is not None:
            self._finish = self._tried_finish(rows, 1 / out)
            self.fixed_gelu_scale = out if self._finish is not None else None

    def _tried_finish(self, rows: torch.Tensor, gelu_factor: torch.Tensor | None) -> Finish | None:
        if not self.scaled_by_twos:
            return None
        few = self.weight.new_zeros((_FEWEST_FIXED_ROWS, self.in_features)) if self.weight_format == "fp8" else None
        if few is None or self.bias is None or self.bias.dtype == torch.float32 or not serves_blas_product(few, self.weight):
            return None
        if not share_scale(self.weight, self.scale):
            return None
        finish = Finish(rows, self.scale[0, 0].clone(), self.bias, gelu_factor)
        try:
            finished_product(few, self.weight, finish)
        except RuntimeError:  # another release of cuBLASLt may not have it
            return None
        return finish

    def fixed_row_scale(self, num_rows: int) -> torch.Tensor | None:
        """The scale, float32 of one number, that so many rows have to have; None where each may have its own."""
        return self._finish.row_scale if self._finish is not None and num_rows >= _FEWEST_FIXED_ROWS else None

    def forward(self, x: torch.Tensor | ScaledRows) -> torch.Tensor:
        """[num_tokens, in_features] -> [num_tokens, out_features]; in the bias' dtype where the rows are rounded already."""
        if (finished := self._finished(x, gelu=False)) is not None:
            return finished
        dtype = self._dtype_of_product(x)
        if isinstance(x, torch.Tensor):
            if (way := self.way(x)) != "scaled":
                return self._product(way, x, gelu=False)
            x = scale_rows(x)
        if self._is_few(x):
            return scaled_few_rows(x, self.weight, self.scale, self.bias, dtype)
        return finish(scaled_product(x, self.weight), x.scale, self.scale[:, 0], self.bias, dtype)

    def gelu(self, x: torch.Tensor | ScaledRows) -> torch.Tensor | ScaledRows:
        """tanh GELU of the product, in one pass where that is possible; as scaled rows where the next product would scale them anyway."""
        if (levels := self._finished(x, gelu=True)) is not None:
            assert self.fixed_gelu_scale is not None
            return ScaledRows(levels, self.fixed_gelu_scale.expand(len(levels)))
        if isinstance(x, torch.Tensor):
            if (way := self.way(x)) != "scaled" or self.bias is None:
                return self._product(way, x, gelu=True)
            x = scale_rows(x)
        assert self.bias is not None
        if self._is_few(x) and self.out_features % TILE == 0:
            return scaled_few_rows_gelu(x, self.weight, self.scale, self.bias)
        return finish_gelu(scaled_product(x, self.weight), x.scale, self.scale[:, 0], self.bias)

    def summands(self, x: torch.Tensor | ScaledRows) -> torch.Tensor | Summands:
        """The product, or what a LayerNorm has to do to finish it."""
        if (finished := self._finished(x, gelu=False)) is not None:
            return finished
        if isinstance(x, torch.Tensor):
            way = self.way(x)
            if way == "few_rows":
                return Summands(few_rows_parts(x, self.weight, self.scale), self.bias)
            if way != "scaled":
                return self._product(way, x, gelu=False)
            x = scale_rows(x)
        if self._is_few(x):
            return Summands(scaled_few_rows_parts(x, self.weight, self.scale), self.bias)
        return Summands(scaled_product(x, self.weight)[None], self.bias, x.scale, self.scale[:, 0])

    def unfinished(self, x: torch.Tensor | ScaledRows) -> torch.Tensor | ScaledProduct:
        """The product, or what its reader has to do to finish it."""
        if (finished := self._finished(x, gelu=False)) is not None:
            return finished
        if isinstance(x, torch.Tensor) or self._is_few(x) or self.bias is None:
            return self.forward(x)
        return ScaledProduct(scaled_product(x, self.weight), x.scale, self.scale[:, 0], self.bias)

    def _finished(self, x: torch.Tensor | ScaledRows, gelu: bool) -> torch.Tensor | None:
        """What `finished_product` makes of many rows, where all scales are known before; rows that are scaled have the fixed one."""
        num_rows = len(x.values if isinstance(x, ScaledRows) else x)
        if self._finish is None or num_rows < _FEWEST_FIXED_ROWS or gelu != (self.fixed_gelu_scale is not None):
            return None
        rows = x if isinstance(x, ScaledRows) else scale_rows_torch(x, self._finish.row_scale)
        return finished_product(rows.values, self.weight, self._finish)

    def as_product(self) -> Product:
        """What a kernel over several products takes of this one, which has a bias."""
        assert self.bias is not None
        return Product(self.weight, self.scale, self.bias)

    def takes_scaled(self, num_rows: int, device: torch.device) -> bool:
        """Whether the product wants so many rows in fp8: whoever makes them had better round them at once."""
        return num_rows > 1 and self.bias is not None and self._multiplies_scaled(device)

    def takes_tiles(self, num_rows: int, device: torch.device) -> bool:
        """Whether it takes them with a scale for each tile of columns, so that nobody has to see a whole row to round it."""
        return self.takes_scaled(num_rows, device) and serves_scaled_few_rows(num_rows, self.weight)

    def way(self, x: torch.Tensor) -> Way:
        """How the product with these rows is made.

        one_row, few_rows: the packed weight is read, which is what counts while few rows share it.  scaled: fp8 times fp8, up to 64 rows by
        an own kernel, beyond by torch's.  dequantized: the weight is made plain first, which is what counts when arithmetic does.
        plain: everything in float32, on a CPU.
        """
        if not x.is_cuda:
            return "plain"
        if is_one_row(x, self.weight, self.scale):
            return "one_row"
        if self._multiplies_scaled(x.device):
            return "scaled"
        return "few_rows" if serves_few_rows(x, self.weight, self.scale) else "dequantized"

    def _multiplies_scaled(self, device: torch.device) -> bool:
        whole = self.in_features % _COLUMNS_OF_A_SCALED_PRODUCT == 0 and self.out_features % _COLUMNS_OF_A_SCALED_PRODUCT == 0
        return self.weight_format == "fp8" and device.type == "cuda" and whole and _multiplies_fp8(device)

    def _is_few(self, x: ScaledRows) -> bool:
        return serves_scaled_few_rows(x.values.shape[0], self.weight)

    def _dtype_of_product(self, x: torch.Tensor | ScaledRows) -> torch.dtype:
        if isinstance(x, torch.Tensor):
            return x.dtype
        assert self.bias is not None  # takes_scaled
        return self.bias.dtype

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
