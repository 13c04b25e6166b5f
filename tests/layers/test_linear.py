"""Products with weights, laid out for the CPU or not, say the same for any number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glmserve.layers.linear import Linear, _padded_rows


def linear_of(dtype: torch.dtype = torch.float32, bias: bool = True) -> Linear:
    generator = torch.Generator().manual_seed(1)
    linear = Linear(24, 40, bias=bias)
    for parameter in linear.parameters():
        parameter.data.normal_(generator=generator)
    return linear.to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 33, 300])
def test_packed_equals_plain(rows: int, bias: bool) -> None:
    plain, packed = linear_of(bias=bias), linear_of(bias=bias)
    packed.pack_for_cpu(keep_weight=False)
    assert not hasattr(packed, "weight"), "the plain weight would take its memory twice"
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows))
    for out, reference in ((packed(x), plain(x)), (packed.gelu(x), F.gelu(plain(x), approximate="tanh"))):
        assert out.shape == (rows, 40)
        assert torch.allclose(out, reference, atol=1e-5)
    assert torch.allclose(plain(x), x @ plain.weight.T + (plain.bias if bias else 0), atol=1e-5)


def test_the_weight_is_kept_on_request() -> None:
    linear = linear_of()
    before = linear.weight
    linear.pack_for_cpu(keep_weight=True)
    assert linear.weight is before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(dtype: torch.dtype) -> None:
    linear = linear_of(dtype)
    linear.pack_for_cpu(keep_weight=False)
    x = torch.randn(3, 24).to(dtype)
    assert linear.weight.dtype == dtype and linear(x).dtype == dtype


def test_prompts_of_every_length_need_few_row_counts() -> None:
    padded = [_padded_rows(count) for count in range(1, 2049)]
    assert all(given <= used for given, used in enumerate(padded, 1))
    assert len(set(padded)) < 100, "oneDNN keeps code for each"
    assert padded[3:16] == list(range(4, 17)), "a decode step is not made longer"
