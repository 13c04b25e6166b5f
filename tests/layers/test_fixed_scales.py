"""Scales that are known before a row is: nothing exceeds them, and what they round is as near as with scales of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glmserve.kernels.blas_product import Finish, finished_product_torch
from glmserve.kernels.layer_stream import Norm, Product
from glmserve.kernels.scaled_rows import LARGEST_FP8, ScaledRows, finish_gelu_torch, scale_rows_torch
from glmserve.layers import quantized_linear
from glmserve.layers.fixed_scales import gelu_scale, mean_scale, norm_scale, share_scale
from glmserve.layers.quantization import quantize_rows
from glmserve.layers.quantized_linear import QuantizedLinear, make_linear

WIDTH, OUTPUTS = 256, 192


def random_layer(seed: int = 0, outlier: float = 1.0) -> tuple[Norm, Product]:
    """A LayerNorm and a product in fp8.  `outlier`: how much one of the norm's weights is larger."""
    draw = torch.Generator().manual_seed(seed)
    norm_weight = 1 + 0.2 * torch.randn(WIDTH, generator=draw)
    norm_weight[3] *= outlier
    numbers = torch.randn(OUTPUTS, WIDTH, generator=draw) * WIDTH**-0.5 * torch.rand(OUTPUTS, 1, generator=draw).clamp(min=0.05)
    weight, scale = quantize_rows(numbers, "fp8", by_twos=True)
    norm = Norm(norm_weight, 0.3 * torch.randn(WIDTH, generator=draw))
    return norm, Product(weight, scale, 0.1 * torch.randn(OUTPUTS, generator=draw))


def numbers_of(product: Product) -> torch.Tensor:
    """Its weight in float32."""
    assert product.scale is not None
    return product.weight.float() * product.scale


def normed(norm: Norm, rows: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """What the LayerNorm gives."""
    return F.layer_norm(rows, (WIDTH,), norm.weight, norm.bias, epsilon)


def hard_rows(norm: Norm, product: Product) -> torch.Tensor:
    """Rows of random numbers, rows of a single large one, and for each output the row that gives the most."""
    worst = numbers_of(product) * norm.weight
    return torch.cat((torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)), 1e4 * torch.eye(WIDTH), worst, -worst))


def test_a_shared_scale_changes_no_number() -> None:
    _, product = random_layer()
    weight, scale, _ = product
    assert scale is not None
    numbers = numbers_of(product)
    assert len(scale.unique()) > 1
    assert share_scale(weight, scale)
    assert len(scale.unique()) == 1
    assert ((numbers_of(product) - numbers).abs() <= scale * 2.0**-10).all()  # half of the smallest level
    large = numbers.abs() >= scale * 2.0**-6
    assert torch.equal(numbers_of(product)[large], numbers[large])


def test_rows_too_different_keep_their_scales() -> None:
    weight, scale = quantize_rows(torch.tensor([[1.0, 2.0], [0.001, 0.002]]), "fp8", by_twos=True)
    before = weight.float() * scale
    assert not share_scale(weight, scale)
    assert torch.equal(weight.float() * scale, before)


@pytest.mark.parametrize("outlier", [1.0, 8.0])
def test_nothing_exceeds_them(outlier: float) -> None:
    norm, product = random_layer(outlier=outlier)
    rows_scale, out_scale = norm_scale(norm), gelu_scale(norm, product)
    assert rows_scale is not None and out_scale is not None
    rows = normed(norm, hard_rows(norm, product), epsilon=0.0)
    assert (rows.abs() <= rows_scale * LARGEST_FP8).all()
    out = (scale_rows_torch(rows, rows_scale).numbers() @ numbers_of(product).t() + product.bias).abs()
    assert out.max() <= out_scale * LARGEST_FP8
    assert out.max() > out_scale * LARGEST_FP8 / 3  # nor is more kept free than needs be


def test_no_mean_of_values_exceeds_its_scale() -> None:
    """One key alone may have all the weight, so a mean may be as large as a value, which may have been rounded."""
    norm, product = random_layer()
    scale = mean_scale(norm, product)
    assert scale is not None
    rows = scale_rows_torch(normed(norm, hard_rows(norm, product), epsilon=0.0)).numbers()
    values = (rows @ numbers_of(product).t() + product.bias).abs()
    assert values.max() * 17 / 16 <= scale * LARGEST_FP8
    assert values.max() > scale * LARGEST_FP8 / 3


@pytest.mark.parametrize("outlier", [1.0, 8.0])
def test_they_round_as_well_as_scales_of_each_row(outlier: float) -> None:
    norm, product = random_layer(outlier=outlier)
    assert product.scale is not None
    rows = normed(norm, torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(2)))
    exact = F.gelu(rows @ numbers_of(product).t() + product.bias, approximate="tanh")
    x = scale_rows_torch(rows)
    by_row = finish_gelu_torch(x.values.float() @ product.weight.float().t(), x.scale, product.scale[:, 0], product.bias)
    rows_scale, out_scale = norm_scale(norm), gelu_scale(norm, product)
    assert rows_scale is not None and out_scale is not None and share_scale(product.weight, product.scale)
    finish = Finish(rows_scale, product.scale[0, 0], product.bias, 1 / out_scale)
    levels = finished_product_torch(scale_rows_torch(rows, rows_scale).values, product.weight, finish)
    together = ScaledRows(levels, out_scale.expand(500))
    errors = [float((out.numbers() - exact).norm() / exact.norm()) for out in (together, by_row)]
    assert errors[0] < 1.15 * errors[1] < 0.06


@pytest.mark.parametrize("of", [1, 30, 1024])
def test_means_are_rounded_as_well_as_with_scales_of_each_row(of: int) -> None:
    norm, product = random_layer()
    scale = mean_scale(norm, product)
    assert scale is not None
    draw = torch.Generator().manual_seed(4)
    values = normed(norm, torch.randn(of, WIDTH, generator=draw)) @ numbers_of(product).t() + product.bias
    exact = torch.softmax(torch.randn(50, of, generator=draw), dim=1) @ values
    errors = [float((out.numbers() - exact).norm() / exact.norm()) for out in (scale_rows_torch(exact, scale), scale_rows_torch(exact))]
    assert errors[0] < 1.15 * errors[1] < 0.05


def test_there_are_none_where_they_would_be_coarse() -> None:
    norm, product = random_layer(outlier=1e5)
    assert norm_scale(norm) is None
    norm, product = random_layer()
    assert product.scale is not None
    assert gelu_scale(norm, product._replace(scale=product.scale * 1e4)) is None
    one_stands_out = product.bias.clone()
    one_stands_out[5] = 1e4
    assert mean_scale(norm, product._replace(bias=one_stands_out)) is None
    assert mean_scale(norm, product.of_outputs(slice(6, None))._replace(bias=one_stands_out[6:])) is not None


@pytest.fixture
def layer() -> QuantizedLinear:
    """The random layer's product, as a loader leaves it."""
    _, (weight, scale, bias) = random_layer()
    layer = make_linear(WIDTH, OUTPUTS, "fp8", scaled_by_twos=True)
    assert isinstance(layer, QuantizedLinear) and scale is not None
    assert not layer.scaled_by_twos, "a CPU makes nothing of it"
    layer.scaled_by_twos = True  # as on Hopper
    layer.weight.copy_(weight)
    layer.scale.copy_(scale)
    layer.bias = torch.nn.Parameter(bias.bfloat16(), requires_grad=False)
    return layer


@pytest.fixture
def plain_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLASLt's twin in its place."""
    monkeypatch.setattr(quantized_linear, "serves_blas_product", lambda levels, weight: True)
    monkeypatch.setattr(quantized_linear, "finished_product", finished_product_torch)


@pytest.mark.usefixtures("plain_library")
@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_multiplies_many_rows_by_them(layer: QuantizedLinear, gelu: bool) -> None:
    norm, product = random_layer()
    if gelu:
        layer.fix_gelu_scales(norm_scale(norm), gelu_scale(norm, product))
    else:
        layer.fix_scales(norm_scale(norm))
    assert len(layer.scale.unique()) == 1
    assert layer.fixed_row_scale(64) is None
    scale = layer.fixed_row_scale(65)
    assert scale is not None
    rows = normed(norm, torch.randn(65, WIDTH, generator=torch.Generator().manual_seed(3)))
    exact = rows @ numbers_of(product).t() + product.bias
    if gelu:
        out = layer.gelu(scale_rows_torch(rows, scale))
        assert isinstance(out, ScaledRows) and out.values.shape == (65, OUTPUTS) and out.scale.shape == (65,)
        exact, made = F.gelu(exact, approximate="tanh"), [out.numbers()]
        assert layer.fixed_gelu_scale is not None and torch.equal(out.scale, layer.fixed_gelu_scale.expand(65))
    else:
        made = [out for ask in (layer.forward, layer.summands, layer.unfinished) for out in (ask(rows), ask(scale_rows_torch(rows, scale)))]
        assert len(made) == 6 and layer.fixed_gelu_scale is None
    for out in made:
        assert isinstance(out, torch.Tensor) and (out - exact).norm() < 0.06 * exact.norm()


@pytest.mark.usefixtures("plain_library")
def test_a_layer_without_known_scales_keeps_its_own(layer: QuantizedLinear) -> None:
    scales = layer.scale.clone()
    layer.fix_scales(None)
    layer.fix_gelu_scales(torch.ones(()), None)
    layer.fix_gelu_scales(None, torch.ones(()))
    assert layer.fixed_row_scale(1000) is None and layer.fixed_gelu_scale is None and torch.equal(layer.scale, scales)


def _refuses(levels: torch.Tensor, weight: torch.Tensor, to: Finish) -> torch.Tensor:
    raise RuntimeError("cublasLtMatmulAlgoGetHeuristic failed with status 15.")


def test_without_the_product_each_row_keeps_its_scale(layer: QuantizedLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = layer.scale.clone()
    layer.fix_scales(torch.ones(()))
    assert layer.fixed_row_scale(1000) is None and torch.equal(layer.scale, scales), "no GPU, so nothing to gain"
    monkeypatch.setattr(quantized_linear, "serves_blas_product", lambda levels, weight: True)
    monkeypatch.setattr(quantized_linear, "finished_product", _refuses)
    layer.fix_scales(torch.ones(()))
    assert layer.fixed_row_scale(1000) is None
