"""Scales that are known before a row is: nothing exceeds them, and what they round is as near as with scales of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glmserve.kernels.blas_product import GeluLevels, gelu_levels_torch
from glmserve.kernels.scaled_rows import LARGEST_FP8, ScaledRows, finish_gelu_torch, scale_rows_torch
from glmserve.layers import quantized_linear
from glmserve.layers.fixed_scales import fixed_mean_scale, fixed_scales, share_scale
from glmserve.layers.quantization import quantize_rows
from glmserve.layers.quantized_linear import QuantizedLinear, make_linear

WIDTH, OUTPUTS = 256, 192


def random_layer(seed: int = 0, outlier: float = 1.0) -> tuple[torch.Tensor, ...]:
    """norm weight, norm bias, weight and scale in fp8, bias.  `outlier`: how much one of the norm's weights is larger."""
    draw = torch.Generator().manual_seed(seed)
    norm_weight = 1 + 0.2 * torch.randn(WIDTH, generator=draw)
    norm_weight[3] *= outlier
    numbers = torch.randn(OUTPUTS, WIDTH, generator=draw) * WIDTH**-0.5 * torch.rand(OUTPUTS, 1, generator=draw).clamp(min=0.05)
    weight, scale = quantize_rows(numbers, "fp8", by_twos=True)
    return norm_weight, 0.3 * torch.randn(WIDTH, generator=draw), weight, scale, 0.1 * torch.randn(OUTPUTS, generator=draw)


def test_a_shared_scale_changes_no_number() -> None:
    _, _, weight, scale, _ = random_layer()
    numbers = weight.float() * scale
    assert len(scale.unique()) > 1
    assert share_scale(weight, scale)
    assert len(scale.unique()) == 1
    assert ((weight.float() * scale - numbers).abs() <= scale * 2.0**-10).all()  # half of the smallest level
    large = numbers.abs() >= scale * 2.0**-6
    assert torch.equal((weight.float() * scale)[large], numbers[large])


def test_rows_too_different_keep_their_scales() -> None:
    weight, scale = quantize_rows(torch.tensor([[1.0, 2.0], [0.001, 0.002]]), "fp8", by_twos=True)
    before = weight.float() * scale
    assert not share_scale(weight, scale)
    assert torch.equal(weight.float() * scale, before)


@pytest.mark.parametrize("outlier", [1.0, 8.0])
def test_nothing_exceeds_them(outlier: float) -> None:
    """Rows of random numbers, rows of a single large one, and for each output the row that gives the most."""
    norm_weight, norm_bias, weight, scale, bias = random_layer(outlier=outlier)
    assert share_scale(weight, scale)
    fixed = fixed_scales(norm_weight, norm_bias, weight, scale, bias)
    assert fixed is not None
    draw = torch.Generator().manual_seed(1)
    worst = weight.float() * scale * norm_weight
    rows = torch.cat((torch.randn(64, WIDTH, generator=draw), 1e4 * torch.eye(WIDTH), worst, -worst))
    normed = F.layer_norm(rows, (WIDTH,), norm_weight, norm_bias, 0.0)
    assert (normed.abs() <= fixed.rows * LARGEST_FP8).all()
    x = scale_rows_torch(normed, fixed.rows)
    out = (x.numbers() @ (weight.float() * scale).t() + bias).abs()
    assert out.max() <= fixed.out * LARGEST_FP8
    assert out.max() > fixed.out * LARGEST_FP8 / 3  # nor is more kept free than needs be


@pytest.mark.parametrize("outlier", [1.0, 8.0])
def test_they_round_as_well_as_scales_of_each_row(outlier: float) -> None:
    norm_weight, norm_bias, weight, scale, bias = random_layer(outlier=outlier)
    draw = torch.Generator().manual_seed(2)
    normed = F.layer_norm(torch.randn(500, WIDTH, generator=draw), (WIDTH,), norm_weight, norm_bias)
    exact = F.gelu(normed @ (weight.float() * scale).t() + bias, approximate="tanh")
    x = scale_rows_torch(normed)
    by_row = finish_gelu_torch(x.values.float() @ weight.float().t(), x.scale, scale[:, 0], bias)
    assert share_scale(weight, scale)
    fixed = fixed_scales(norm_weight, norm_bias, weight, scale, bias)
    assert fixed is not None
    x = scale_rows_torch(normed, fixed.rows)
    together = ScaledRows(gelu_levels_torch(x.values, weight, fixed.gelu), fixed.out.expand(500))
    errors = [float((out.numbers() - exact).norm() / exact.norm()) for out in (together, by_row)]
    assert errors[0] < 1.15 * errors[1] < 0.06


def test_there_are_none_where_they_would_be_coarse() -> None:
    assert fixed_scales(*random_layer(outlier=1e5)) is None
    norm_weight, norm_bias, weight, scale, bias = random_layer()
    assert fixed_scales(norm_weight, norm_bias, weight, scale * 1e4, bias) is None


def means_of_values(scale: torch.Tensor, of: int) -> tuple[torch.Tensor, ScaledRows]:
    """Weighted means of so many values that a layer gives, exact and rounded with `scale`."""
    norm_weight, norm_bias, weight, weight_scale, bias = random_layer()
    draw = torch.Generator().manual_seed(4)
    normed = F.layer_norm(torch.randn(of, WIDTH, generator=draw), (WIDTH,), norm_weight, norm_bias)
    values = normed @ (weight.float() * weight_scale).t() + bias
    exact = torch.softmax(torch.randn(50, of, generator=draw), dim=1) @ values
    return exact, scale_rows_torch(exact, scale)


def test_no_mean_of_values_exceeds_its_scale() -> None:
    """One key alone may have all the weight, so a mean may be as large as a value."""
    norm_weight, norm_bias, weight, weight_scale, bias = random_layer()
    scale = fixed_mean_scale(norm_weight, norm_bias, weight, weight_scale, bias)
    assert scale is not None
    worst = weight.float() * weight_scale * norm_weight
    rows = torch.cat((torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)), 1e4 * torch.eye(WIDTH), worst, -worst))
    normed = scale_rows_torch(F.layer_norm(rows, (WIDTH,), norm_weight, norm_bias, 0.0)).numbers()
    values = (normed @ (weight.float() * weight_scale).t() + bias).abs()
    assert values.max() * 17 / 16 <= scale * LARGEST_FP8
    assert values.max() > scale * LARGEST_FP8 / 3


@pytest.mark.parametrize("of", [1, 30, 1024])
def test_means_are_rounded_as_well_as_with_scales_of_each_row(of: int) -> None:
    scale = fixed_mean_scale(*random_layer())
    assert scale is not None
    exact, rounded = means_of_values(scale, of)
    errors = [float((out.numbers() - exact).norm() / exact.norm()) for out in (rounded, scale_rows_torch(exact))]
    assert errors[0] < 1.15 * errors[1] < 0.05


def test_there_is_no_scale_of_means_where_it_would_be_coarse() -> None:
    norm_weight, norm_bias, weight, scale, bias = random_layer()
    assert fixed_mean_scale(norm_weight, norm_bias, weight, scale, bias) is not None
    bias[5] = 1e4
    assert fixed_mean_scale(norm_weight, norm_bias, weight, scale, bias) is None


@pytest.fixture
def layer() -> QuantizedLinear:
    """The random layer's product, as a loader leaves it."""
    _, _, weight, scale, bias = random_layer()
    layer = make_linear(WIDTH, OUTPUTS, "fp8", scaled_by_twos=True)
    assert isinstance(layer, QuantizedLinear) and layer.bias is not None
    layer.weight.copy_(weight)
    layer.scale.copy_(scale)
    layer.bias = torch.nn.Parameter(bias.bfloat16(), requires_grad=False)
    return layer


def test_a_layer_multiplies_many_rows_by_them(layer: QuantizedLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_linear, "serves_blas_product", lambda levels, weight: True)
    monkeypatch.setattr(quantized_linear, "gelu_levels", gelu_levels_torch)
    numbers = layer.weight.float() * layer.scale
    norm_weight, norm_bias = random_layer()[:2]
    layer.fix_scales(norm_weight, norm_bias)
    assert len(layer.scale.unique()) == 1
    assert layer.fixed_row_scale(64) is None
    scale = layer.fixed_row_scale(65)
    assert scale is not None
    normed = F.layer_norm(torch.randn(65, WIDTH, generator=torch.Generator().manual_seed(3)), (WIDTH,), norm_weight, norm_bias)
    out = layer.gelu(scale_rows_torch(normed, scale))
    assert isinstance(out, ScaledRows) and out.values.shape == (65, OUTPUTS) and out.scale.shape == (65,)
    assert layer.bias is not None
    exact = F.gelu(normed @ numbers.t() + layer.bias.float(), approximate="tanh")
    assert (out.numbers() - exact).norm() < 0.06 * exact.norm()


def _refuses(levels: torch.Tensor, weight: torch.Tensor, to: GeluLevels) -> torch.Tensor:
    raise RuntimeError("cublasLtMatmulAlgoGetHeuristic failed with status 15.")


def test_without_the_product_each_row_keeps_its_scale(layer: QuantizedLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = layer.scale.clone()
    layer.fix_scales(*random_layer()[:2])
    assert layer.fixed_row_scale(1000) is None and torch.equal(layer.scale, scales), "no GPU, so nothing to gain"
    monkeypatch.setattr(quantized_linear, "serves_blas_product", lambda levels, weight: True)
    monkeypatch.setattr(quantized_linear, "gelu_levels", _refuses)
    layer.fix_scales(*random_layer()[:2])
    assert layer.fixed_row_scale(1000) is None
