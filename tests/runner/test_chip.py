"""What a device can do: which product is measured, and that a measurement gives rates."""

from __future__ import annotations

import torch

from glmserve.runner.chip import _measure, product_dtype


def test_fp8_weights_are_measured_against_fp8_products_where_there_are_any() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert product_dtype("fp8", torch.float16, gpu) == torch.float8_e4m3fn
    assert product_dtype("fp8", torch.float32, cpu) == torch.float32
    assert product_dtype("int8", torch.float16, gpu) == torch.float16


def test_a_measurement_gives_rates() -> None:
    chip = _measure(torch.device("cpu"), torch.float32, 2**20, 64, 2)
    assert chip.bytes_per_second > 0 and chip.flops_per_second > 0
