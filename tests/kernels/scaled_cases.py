"""Kernels and products of rows in 8-bit floats against their twins: `cases` for fp8."""

from __future__ import annotations

import torch

from glmserve.kernels import activation, blas_product, norm, scaled_few_rows, scaled_rows
from tests.kernels.cases import ROUNDED_BOUND, Device, assert_close, packed_weight, relative_error


def check_blas_products(on: Device, rows: int, outputs: int, width: int) -> None:
    """The number of rows differs from call to call, as do the bias and the scales."""
    weight = scaled_rows.scale_rows_torch(on.randn(outputs, width)).values
    for count in (rows, rows + 1, rows):
        levels = scaled_rows.scale_rows_torch(on.randn(count, width)).values
        assert blas_product.serves_blas_product(levels, weight)
        product = blas_product.levels_product(levels, weight)
        assert product.dtype == torch.bfloat16
        assert_close(product, blas_product.levels_product_torch(levels, weight), torch.bfloat16)
        row_scale, weight_scale, factor = (torch.tensor(number, device=on.name) for number in (count / 3e5, 30 / count / width**0.5, 16.0))
        to = blas_product.Finish(row_scale, weight_scale, on.randn(outputs))
        numbers = blas_product.finished_product(levels, weight, to)
        assert numbers.dtype == on.dtype
        assert_close(numbers, blas_product.finished_product_torch(levels, weight, to), torch.bfloat16)
        to = to._replace(gelu_factor=factor)
        out, twin = blas_product.finished_product(levels, weight, to), blas_product.finished_product_torch(levels, weight, to)
        exact = activation.gelu_tanh_torch((levels.float() @ weight.float().t()) * row_scale * weight_scale + to.bias.float()) * factor
        assert relative_error(out, exact) <= 1.05 * relative_error(twin, exact) <= 0.04  # sums added up fast: a level may be the next one
    for not_served in (levels.t(), levels[1:, width // 2 :]):
        assert not blas_product.serves_blas_product(not_served, weight)


def check_scaled_layer_norm(on: Device, num_parts: int, num_tokens: int, hidden_size: int) -> None:
    """A LayerNorm that rounds its rows for the next product too."""
    given = norm.Summands(on.randn(num_parts, num_tokens, hidden_size), on.randn(hidden_size))
    arguments = (given, on.randn(num_tokens, hidden_size), 7.48, on.randn(hidden_size), on.randn(hidden_size), 1e-5)
    for fixed in (None, on.randn(1, dtype=torch.float32).abs()[0] / 50):
        out, rounded = norm.residual_layer_norm_scaled(*arguments, fixed)
        reference, rounded_reference = norm.residual_layer_norm_scaled_torch(*arguments, fixed)
        assert_close(out, reference, on.dtype)
        assert_close(rounded.scale, rounded_reference.scale, torch.float16)
        assert relative_error(rounded.numbers(), rounded_reference.numbers()) <= ROUNDED_BOUND[on.name]


def check_scaled_few_rows(on: Device, rows: int, in_features: int, out_features: int) -> None:
    """fp8 times fp8, with scales by row and by tile, as a product, as summands and with GELU."""
    weight, scale = packed_weight(on, "fp8", out_features, in_features)
    bias, x = on.randn(out_features), on.randn(rows, in_features) * on.randn(1, in_features).abs()
    exact = torch.float16 if on.dtype == torch.float32 else on.dtype  # the matrix units add products of fp8 in less than float32
    fixed = x.float().abs().max() / scaled_rows.LARGEST_FP8
    for given in (scaled_rows.scale_rows_torch(x), scaled_rows.scale_tiles_torch(x), scaled_rows.scale_rows_torch(x, fixed)):
        product = scaled_few_rows.scaled_few_rows_torch(given, weight, scale, None)
        for with_bias in (None, bias):
            reference = product if with_bias is None else product + bias.float()
            assert_close(scaled_few_rows.scaled_few_rows(given, weight, scale, with_bias, on.dtype), reference, exact)
        assert_close(scaled_few_rows.scaled_few_rows_parts(given, weight, scale).sum(dim=0), product, torch.float16)
        if out_features % scaled_rows.TILE == 0:
            out = scaled_few_rows.scaled_few_rows_gelu(given, weight, scale, bias)
            rounded = scaled_rows.scale_tiles_torch(scaled_few_rows.scaled_few_rows_torch(given, weight, scale, bias, gelu=True))
            assert_close(out.scale, rounded.scale, torch.bfloat16)
            assert relative_error(out.numbers(), rounded.numbers()) <= ROUNDED_BOUND[on.name]


def check_scaled_product(on: Device, rows: int, outputs: int, width: int) -> None:
    """Of a single row too: such a chunk may be what is left of a prompt."""
    x = scaled_rows.scale_rows_torch(on.randn(rows, width))
    weight = scaled_rows.scale_rows_torch(on.randn(outputs, width)).values
    assert_close(scaled_rows.scaled_product(x, weight), blas_product.levels_product_torch(x.values, weight), torch.bfloat16)


def check_scaled_rows(on: Device, rows: int, width: int) -> None:
    """Rounding to 8-bit floats and what finishes a product of them."""
    x, bias = on.randn(rows, width) * 3, on.randn(width)
    row_scale, column_scale = on.randn(rows, dtype=torch.float32).abs(), on.randn(width, dtype=torch.float32)
    pairs = [
        (scaled_rows.scale_rows(x), scaled_rows.scale_rows_torch(x)),
        (scaled_rows.finish_gelu(x, row_scale, column_scale, bias), scaled_rows.finish_gelu_torch(x, row_scale, column_scale, bias)),
    ]
    for out, reference in pairs:
        assert_close(out.scale, reference.scale, torch.float16)
        assert relative_error(out.numbers(), reference.numbers()) <= ROUNDED_BOUND[on.name]
    for given in (bias, None):
        out_rows = scaled_rows.finish(x, row_scale, column_scale, given, on.dtype)
        assert_close(out_rows, scaled_rows.finish_torch(x, row_scale, column_scale, given, on.dtype), on.dtype)
