"""The twin of `layer_stream` against the formulas of GLMBlock in float64, and where the kernel does not serve."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glmserve.kernels import layer_stream
from glmserve.kernels.layer_stream import Norm, Product, layer_stream_torch
from glmserve.kernels.scaled_rows import ScaledRows
from tests.kernels.cases import Device, relative_error
from tests.kernels.stream_cases import random_rows, random_stretch


@pytest.mark.parametrize("fp8", [False, True])
def test_the_twin_is_a_layer_from_attention_to_attention(fp8: bool) -> None:
    on = Device("cpu", torch.float32, seed=3)
    layer, (mixed, residual) = random_stretch(on, 256, 1024, fp8), random_rows(on, 5, 256, fp8)

    def times(x: torch.Tensor, product: Product) -> torch.Tensor:
        weight = product.weight.double() if product.scale is None else product.weight.double() * product.scale.double()
        return x @ weight.t() + product.bias.double()

    def norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return F.layer_norm(x, (256,), norm.weight.double(), norm.bias.double(), 1e-5)

    given = (mixed.numbers() if isinstance(mixed, ScaledRows) else mixed).double()
    middle = norm(times(given, layer.dense) + 7.5 * residual.double(), layer.norm)
    down = times(F.gelu(times(middle, layer.up), approximate="tanh"), layer.down)
    following = norm(down + 7.5 * middle, layer.next_norm)
    qkv, out = layer_stream_torch(mixed, residual, layer)
    assert relative_error(out, following) < (0.01 if fp8 else 1e-5)  # fp8 rounds each product's rows
    assert relative_error(qkv, times(following, layer.qkv)) < (0.05 if fp8 else 1e-5)
    nothing, end = layer_stream_torch(mixed, residual, layer._replace(qkv=None))
    assert nothing is None and torch.equal(end, out)


def test_a_cpu_takes_the_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_stream, "HAS_GLUON", True)
    rows, dense = (torch.empty(count, 4096, dtype=torch.bfloat16) for count in (8, 4096))
    assert not layer_stream.serves_layer_stream(rows, dense, 16384)
