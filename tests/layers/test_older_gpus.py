"""What is chosen on GPUs that lack what an H100 has: the choice is made from what the device says, so a pretended device shows it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glmserve.kernels import backend, blas_product, few_rows_linear, gluon_backend, hopper_prefill, layer_stream
from glmserve.layers import quantized_linear
from glmserve.layers.quantized_linear import QuantizedLinear

CHIPS = {  # compute capability, shared memory of a multiprocessor in bytes
    "A10": ((8, 6), 102_400),
    "A100": ((8, 0), 167_936),
    "RTX 4090": ((8, 9), 102_400),
    "H100": ((9, 0), 233_472),
}


@pytest.fixture(params=CHIPS)
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """torch.cuda tells of that chip."""
    capability, shared_memory = CHIPS[request.param]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    properties = SimpleNamespace(shared_memory_per_multiprocessor=shared_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    caches = (backend.has_large_shared_memory, backend._has_early_start, quantized_linear._multiplies_fp8, gluon_backend.is_hopper)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()


def rows(count: int, dtype: torch.dtype = torch.float16) -> Any:
    return SimpleNamespace(is_cuda=True, shape=(count, 4096), dtype=dtype, device=torch.device("cuda", 0))


def test_only_hopper_starts_kernels_early(chip: str) -> None:
    assert backend.early_start(rows(1)).get("launch_pdl", False) is (chip == "H100")


def test_long_prompts_have_a_kernel_of_their_own_on_hopper_alone(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query: Any = SimpleNamespace(is_cuda=True, shape=(2000, 32, 128), element_size=lambda: 2, device=torch.device("cuda", 0))
    assert not hopper_prefill.serves_hopper_prefill(query, 1000), "no Gluon of the tested release on this machine"
    monkeypatch.setattr(hopper_prefill, "HAS_GLUON", True)
    assert hopper_prefill.serves_hopper_prefill(query, 1000) is (chip == "H100")
    assert not hopper_prefill.serves_hopper_prefill(query, 128)
    query.shape = (2000, 32, 64)
    assert not hopper_prefill.serves_hopper_prefill(query, 1000)


@pytest.mark.parametrize("multiprocessors", [132, 114])
def test_a_layer_is_one_launch_on_a_large_hopper_alone(chip: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense: Any = SimpleNamespace(is_cuda=True, shape=(4096, 4096), dtype=torch.float16, device=torch.device("cuda", 0))
    assert not layer_stream.serves_layer_stream(rows(8), dense, 16384), "no Gluon of the tested release on this machine"
    monkeypatch.setattr(layer_stream, "HAS_GLUON", True)
    monkeypatch.setattr(layer_stream, "num_multiprocessors", lambda device: multiprocessors)
    large = chip == "H100" and multiprocessors == 132  # the PCIe card has 114: its programs could not all run at once
    assert [layer_stream.serves_layer_stream(rows(count), dense, 16384) for count in (1, 64, 65)] == [large, large, False]
    assert not layer_stream.serves_layer_stream(rows(8), dense, 13696), "another model's width"
    dense.dtype = torch.float8_e4m3fn
    assert layer_stream.serves_layer_stream(rows(1), dense, 16384) is large
    assert not layer_stream.serves_layer_stream(rows(8, torch.float32), dense, 16384), "too large for shared memory"
    dense.dtype = torch.int8
    assert not layer_stream.serves_layer_stream(rows(8), dense, 16384)


def test_gelu_is_part_of_an_fp8_product_on_hopper_alone(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def levels(*shape: int, address: int = 256, dense: bool = True) -> Any:
        place = {"data_ptr": lambda: address, "is_contiguous": lambda: dense}
        return SimpleNamespace(is_cuda=True, shape=shape, device=torch.device("cuda", 0), **place)

    weight = levels(16384, 4096)
    monkeypatch.setattr(blas_product, "_library", lambda: object())
    assert blas_product.serves_blas_product(levels(300, 4096), weight) is (chip == "H100")
    for not_served in (levels(300, 4096, address=264), levels(300, 4096, dense=False)):
        assert not blas_product.serves_blas_product(not_served, weight)
    assert not blas_product.serves_blas_product(levels(300, 4100), levels(16384, 4100))
    monkeypatch.setattr(blas_product, "_library", lambda: None)
    assert not blas_product.serves_blas_product(levels(300, 4096), weight), "another CUDA than torch was built for"


@pytest.mark.parametrize("form", [0, 2, 3])
@pytest.mark.parametrize("count", [2, 16, 17, 64])
def test_tiles_fit_into_shared_memory(chip: str, form: int, count: int) -> None:
    outputs, columns, stages = few_rows_linear._tile(form, count, 4096, torch.device("cuda", 0))
    weight_bytes = outputs * columns * (2 if form == 0 else 1)
    row_bytes = max(16, count) * columns * 2 * (2 if form == 3 else 1)
    assert stages * (weight_bytes + row_bytes) < CHIPS[chip][1]


def test_rows_of_fp8_multiply_only_where_the_matrix_units_take_them(chip: str) -> None:
    layer, device = QuantizedLinear(4096, 4096, "fp8"), torch.device("cuda", 0)
    takes = chip in ("RTX 4090", "H100")
    assert layer.way(rows(1)) == "one_row"
    assert layer.way(rows(8)) == layer.way(rows(256)) == ("scaled" if takes else "dequantized")
    assert [layer.takes_scaled(count, device) for count in (1, 2, 64, 65)] == [False, takes, takes, takes]
    assert [layer.takes_tiles(count, device) for count in (1, 2, 64, 65)] == [False, takes, takes, False]


def test_fp8_with_columns_that_are_no_whole_tiles_is_multiplied_by_torch(chip: str) -> None:
    layer, device = QuantizedLinear(80, 64, "fp8"), torch.device("cuda", 0)
    assert layer.takes_scaled(8, device) is (chip in ("RTX 4090", "H100"))
    assert not layer.takes_tiles(8, device)


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_integers_need_no_special_units(chip: str, weight_format: Any) -> None:
    layer = QuantizedLinear(4096, 4096, weight_format)
    assert [layer.way(rows(count)) for count in (1, 8, 64, 65)] == ["one_row", "few_rows", "few_rows", "dequantized"]
