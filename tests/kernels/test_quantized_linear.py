"""The product with a packed weight equals the product with the weight that it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glmserve.kernels.quantized_linear import quantized_linear_torch
from glmserve.layers.quantization import quantize_rows


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("weight_format", ["int8", "int4", "fp8"])
def test_it_equals_the_plain_product(weight_format, rows, bias, gelu):
    generator = torch.Generator().manual_seed(rows)
    weight, scale = packed = quantize_rows(torch.randn(10, 48, generator=generator), weight_format)
    x = torch.randn(rows, 48, generator=generator)
    b = torch.randn(10, generator=generator) if bias else None
    expected = F.linear(x, packed.dequantize(torch.float32), b)
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    torch.testing.assert_close(quantized_linear_torch(x, weight, scale, b, gelu), expected)
    half = quantized_linear_torch(x.half(), weight, scale, None if b is None else b.half(), gelu)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=1e-2, atol=3e-2)
