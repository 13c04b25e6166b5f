"""Rounding and layouts of quantized matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glmserve.kernels.quantized_linear import pack_int4, unpack_int4
from glmserve.layers.quantization import PACKED_DTYPES, packed_columns, quantize_rows, released_rows

FORMATS = ["int8", "int4", "fp8"]
LEVELS = st.tuples(st.integers(1, 5), st.integers(1, 9), st.randoms(use_true_random=False)).map(
    lambda t: torch.tensor([[t[2].randint(-8, 7) for _ in range(2 * t[1])] for _ in range(t[0])], dtype=torch.int8)
)


@given(LEVELS)
def test_int4_comes_out_as_it_went_in(levels):
    packed = pack_int4(levels)
    assert packed.dtype == torch.uint8 and packed.shape == (levels.shape[0], levels.shape[1] // 2)
    assert torch.equal(unpack_int4(packed), levels)


@given(LEVELS)
def test_released_int4_means_the_same_in_our_layout(levels):
    released = (levels[:, 0::2] << 4) | (levels[:, 1::2] & 15)  # the even column in the high nibble
    scale = torch.arange(1, levels.shape[0] + 1).half()
    rows = released_rows(released, scale, bits=4)
    assert torch.equal(rows.dequantize(torch.float32), levels.float() * scale.float()[:, None])


def test_the_low_nibbles_of_a_row_are_its_first_half():
    levels = torch.tensor([[-8, -1, 0, 7]], dtype=torch.int8)
    assert pack_int4(levels).tolist() == [[0 | 8 << 4, 7 | 15 << 4]]


@pytest.mark.parametrize(("model", "bits"), [("quant_int8", 8), ("quant_int4", 4), ("quant_int4_qe", 4)])
def test_the_original_dequantizes_to_the_same_numbers(shared: Path, model: str, bits: int) -> None:
    reference = np.load(shared / "golden/v1" / model / "dequant_reference.npz")
    names = sorted({key.split("|")[0] for key in reference})
    assert names
    for name in names:
        part = {kind: torch.from_numpy(reference[f"{name}|{kind}"]) for kind in ("packed", "scale_fp16", "dequant_f32", "original_fp16")}
        assert torch.equal(released_rows(part["packed"], part["scale_fp16"], bits).dequantize(torch.float32), part["dequant_f32"])
        ours = quantize_rows(part["original_fp16"], "int8" if bits == 8 else "int4").dequantize(torch.float32)
        original = part["original_fp16"].float()
        of_the_release = (part["dequant_f32"] - original).norm()
        assert (ours - original).norm() <= (1.01 if bits == 8 else 0.95) * of_the_release


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_is_rounded_to_a_level_beside_it(weight_format, dtype):
    original = torch.randn(7, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = quantize_rows(original, weight_format)
    assert rows.weight.dtype == PACKED_DTYPES[weight_format]
    assert rows.weight.shape == (7, packed_columns(weight_format, 24))
    error = (rows.dequantize(torch.float32) - original.float()).abs()
    most = {"int8": 0.5, "int4": 1.0, "fp8": 16.0}[weight_format]  # int4: what would be 8; fp8: half of its coarsest levels, 256 to 448
    assert (error <= rows.scale.abs() * most * 1.001).all()
    largest = original.float().abs().max(dim=1)
    assert (error.gather(1, largest.indices[:, None])[:, 0] <= largest.values * 1e-6).all()


def test_scales_by_twos_are_the_power_of_two_above():
    rows = torch.tensor([[448.0, 1.0], [448.5, -3.0], [-224.0, 0.0], [1.75, 0.01], [3e-8, 1e-9]])
    by_twos = quantize_rows(rows, "fp8", by_twos=True)
    assert by_twos.scale[:, 0].tolist() == [1.0, 2.0, 0.5, 2.0**-8, 2.0**-33]
    error = (by_twos.dequantize(torch.float32) - rows).abs()
    assert (error <= (rows.abs() / 16).clamp(min=by_twos.scale * 2.0**-10)).all()  # half of a level of its own size
    for weight_format in ("int8", "int4"):
        assert torch.equal(quantize_rows(rows, weight_format, by_twos=True).scale, quantize_rows(rows, weight_format).scale)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_of_zeros_stays_zero(weight_format):
    rows = quantize_rows(torch.tensor([[0.0] * 4, [1e-40] * 4]), weight_format)
    assert rows.scale.all() and not rows.dequantize(torch.float32).any()


def test_int4_needs_an_even_number_of_columns():
    with pytest.raises(ValueError, match="5 columns"):
        packed_columns("int4", 5)
