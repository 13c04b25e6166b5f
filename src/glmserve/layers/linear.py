"""Matrix products with weights of the model's dtype.  Quantized ones are in quantized_linear.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from glmserve.kernels.activation import gelu_tanh
from glmserve.kernels.backend import use_triton
from glmserve.kernels.few_rows_linear import few_rows_linear, few_rows_parts, serves_few_rows
from glmserve.kernels.layer_stream import Product
from glmserve.kernels.norm import Summands
from glmserve.kernels.one_row_linear import is_one_row, one_row_linear
from glmserve.kernels.scaled_rows import ScaledRows

# oneDNN's product of 4 rows takes less time than that of 1 or 2 (benchmarks/RESULTS.md, "CPU matrix products").
_FEWEST_CPU_ROWS = 4
_MOST_EXACT_CPU_ROWS = 16
# Long rows times a narrow weight leave cuBLAS too few tiles; two products of half the columns are 10% faster (benchmarks/RESULTS.md).
_FEWEST_SPLIT_COLUMNS = 8192
_SPLIT_ROWS = range(65, 257)


class Linear(nn.Module):
    """y = x W^T + b with weight [out_features, in_features], left uninitialised for the loader to fill."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self._packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor | ScaledRows) -> torch.Tensor:
        """[num_tokens, in_features] -> [num_tokens, out_features]."""
        assert isinstance(x, torch.Tensor)  # takes_scaled
        if self._packed is not None:
            return self._on_cpu(x, self._packed)
        if is_one_row(x, self.weight):
            return one_row_linear(x, self.weight, None, self.bias)
        if serves_few_rows(x, self.weight, None):
            return few_rows_linear(x, self.weight, None, self.bias)
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: torch.Tensor | ScaledRows) -> torch.Tensor:
        """tanh GELU of the product, in one pass where that is possible."""
        assert isinstance(x, torch.Tensor)  # takes_scaled
        if self._packed is not None:
            return gelu_tanh(self._on_cpu(x, self._packed))
        if is_one_row(x, self.weight):
            return one_row_linear(x, self.weight, None, self.bias, gelu=True)
        if serves_few_rows(x, self.weight, None):
            return few_rows_linear(x, self.weight, None, self.bias, gelu=True)
        if use_triton(x) and self.bias is not None and x.dtype != torch.float32:
            return torch._addmm_activation(self.bias, x, self.weight.t(), use_gelu=True)  # cuBLAS does both as it writes
        return gelu_tanh(F.linear(x, self.weight, self.bias))

    def summands(self, x: torch.Tensor | ScaledRows) -> torch.Tensor | Summands:
        """The product, or, where that is faster, summands for the LayerNorm that reads it."""
        assert isinstance(x, torch.Tensor)  # takes_scaled
        if self._packed is None and x.shape[0] > 1 and serves_few_rows(x, self.weight, None):
            return Summands(few_rows_parts(x, self.weight, None), self.bias)
        long = self.in_features >= _FEWEST_SPLIT_COLUMNS and self.in_features % 2 == 0
        if long and use_triton(x) and x.shape[0] in _SPLIT_ROWS:
            return Summands(self._halves(x), self.bias)
        return self.forward(x)

    def _halves(self, x: torch.Tensor) -> torch.Tensor:
        """The products of the left and the right columns, [2, num_tokens, out_features]."""
        columns = self.in_features // 2
        return torch.bmm(x.view(-1, 2, columns).transpose(0, 1), self.weight.view(-1, 2, columns).permute(1, 2, 0))

    def unfinished(self, x: torch.Tensor | ScaledRows) -> torch.Tensor:
        """The product; nothing is left to do."""
        return self.forward(x)

    def as_product(self) -> Product:
        """What a kernel over several products takes of this one, which has a bias."""
        assert self.bias is not None
        return Product(self.weight, None, self.bias)

    def takes_scaled(self, num_rows: int, device: torch.device) -> bool:
        """Never: its rows stay in the model's dtype."""
        return False

    def takes_tiles(self, num_rows: int, device: torch.device) -> bool:
        """Never."""
        return False

    def fixed_row_scale(self, num_rows: int) -> torch.Tensor | None:
        """None."""
        return None

    def _on_cpu(self, x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        padding = _padded_rows(count) - count
        if padding:
            x = F.pad(x, (0, 0, 0, padding))
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")
        return out[:count]

    def pack_for_cpu(self, keep_weight: bool) -> None:
        """Lay the weight out for oneDNN, once: with few rows it is about twice as fast as the default product on a CPU.

        float32 on a CPU only, and only where this torch has the operation, which its own compiler uses; otherwise nothing changes.
        """
        supported = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32 or not supported:
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), _FEWEST_CPU_ROWS)
        if not keep_weight:
            del self.weight


def _padded_rows(count: int) -> int:
    """With how many rows oneDNN multiplies.

    It makes code for each number of rows and keeps it, so prompts of every length would fill the memory.
    """
    if count <= _MOST_EXACT_CPU_ROWS:
        return max(count, _FEWEST_CPU_ROWS)
    step = 8 if count <= 128 else 32
    return -(-count // step) * step
