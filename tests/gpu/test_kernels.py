"""Every kernel on the GPU against its plain twin: all dtypes, odd sizes, both memory orders of the cache."""

from __future__ import annotations

import pytest
import torch

from glmserve.kernels.gluon_backend import is_hopper
from tests.kernels import cases, nucleus_cases, scaled_cases, top_k_cases
from tests.kernels.cases import Device

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("num_tokens,hidden_size", [(1, 4096), (7, 64), (33, 576), (300, 4096), (5, 100)])
def test_norms(dtype: torch.dtype, num_tokens: int, hidden_size: int) -> None:
    for with_residual in (False, True):
        on = Device("cuda", dtype, seed=num_tokens)
        cases.check_layer_norm(on, num_tokens, hidden_size, with_residual)
        cases.check_rms_norm(on, num_tokens, hidden_size, with_residual)


@pytest.mark.parametrize("num_tokens,width", [(1, 16384), (3, 700), (257, 1536)])
def test_activations(dtype: torch.dtype, num_tokens: int, width: int) -> None:
    cases.check_activations(Device("cuda", dtype, seed=width), num_tokens, width)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize(
    "num_tokens,heads,kv_heads,dim,axes", [(1, 32, 32, 128, 2), (130, 4, 4, 16, 2), (9, 2, 2, 8, 2), (40, 9, 3, 64, 1)]
)
def test_rotary_store(dtype: torch.dtype, num_tokens: int, heads: int, kv_heads: int, dim: int, axes: int, by_head: bool) -> None:
    cases.check_rotary_store(Device("cuda", dtype, seed=dim), num_tokens, heads, kv_heads, dim, axes, by_head)
    cases.check_finish_rotary_store(Device("cuda", dtype, seed=dim), num_tokens, heads, kv_heads, dim, axes, by_head)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("splits", [None, (3, 20), (16, 12), (16, 0), (32, 31)])
@pytest.mark.parametrize("heads,dim,axes", [(32, 128, 2), (4, 16, 2), (2, 8, 2), (6, 64, 1)])
@pytest.mark.parametrize("seq_lens", [[1], [1900], [1, 15, 0, 16, 17, 64, 65, 257, 1000]], ids=["one", "long", "mixed"])
def test_full_heads_decode(
    dtype: torch.dtype, seq_lens: list[int], heads: int, dim: int, axes: int, splits: tuple[int, int] | None, by_head: bool
) -> None:
    cases.check_full_heads_decode(Device("cuda", dtype, seed=dim), seq_lens, heads, dim, axes, 16, by_head, splits)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("splits", [1, 3, None])
@pytest.mark.parametrize("heads,kv_heads,dim", [(9, 3, 64), (32, 2, 128)])
@pytest.mark.parametrize("seq_lens", [[1], [1900], [1, 15, 16, 17, 64, 65, 257, 1000]], ids=["one", "long", "mixed"])
def test_decode_attention(
    dtype: torch.dtype, seq_lens: list[int], heads: int, kv_heads: int, dim: int, splits: int | None, by_head: bool
) -> None:
    cases.check_decode(Device("cuda", dtype, seed=dim), seq_lens, heads, kv_heads, dim, 16, by_head, splits)


@pytest.mark.parametrize("heads,kv_heads,dim", [(32, 32, 128), (4, 4, 16), (2, 2, 8), (9, 3, 64)])
@pytest.mark.parametrize("query_lens,seq_lens,context_lens", [
    ([1], [1], [1]),
    ([1900], [1900], [1899]),
    ([3, 129, 40, 1, 129, 70], [3, 129, 300, 77, 137, 70], [3, 0, 0, 76, 65, 64]),
])  # fmt: skip
def test_prefill_attention(
    dtype: torch.dtype, query_lens: list[int], seq_lens: list[int], context_lens: list[int], heads: int, kv_heads: int, dim: int
) -> None:
    for by_head in (False, True):
        cases.check_prefill(Device("cuda", dtype, seed=dim), query_lens, seq_lens, context_lens, heads, kv_heads, dim, by_head)


@pytest.mark.parametrize("heads,kv_heads,dim", [(32, 32, 128), (32, 4, 128), (4, 4, 16), (2, 2, 8), (9, 3, 64)])
@pytest.mark.parametrize("seq_lens,context_lens", [
    ([1], [0]),
    ([1900, 1900], [1900, 1899]),
    ([3, 700, 64, 1, 1500, 512, 129], [2, 0, 64, 1, 1499, 300, 128]),
    ([3, 129, 64, 1, 130, 65], [3, 0, 63, 1, 65, 64]),
])  # fmt: skip
def test_dense_prefill(dtype: torch.dtype, seq_lens: list[int], context_lens: list[int], heads: int, kv_heads: int, dim: int) -> None:
    cases.check_dense_prefill(Device("cuda", dtype, seed=dim), seq_lens, context_lens, heads, kv_heads, dim)
    if torch.cuda.get_device_capability() >= (8, 9):  # 8-bit floats
        cases.check_dense_prefill(Device("cuda", dtype, seed=dim), seq_lens, context_lens, heads, kv_heads, dim, rounds=True)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("in_features,out_features", [(4096, 12288), (16384, 4096), (64, 70), (4096, 130528)])
def test_one_row_linear(dtype: torch.dtype, in_features: int, out_features: int, gelu: bool) -> None:
    cases.check_one_row_linear(Device("cuda", dtype, seed=out_features), in_features, out_features, with_bias=not gelu, gelu=gelu)


@pytest.mark.parametrize("by_head", [False, True])
def test_an_fp8_cache(dtype: torch.dtype, by_head: bool) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit floats came with sm_89")
    on, fp8 = Device("cuda", dtype, seed=3), torch.float8_e4m3fn
    cases.check_rotary_store(on, 130, 4, 4, 16, 2, by_head, fp8)
    cases.check_rotary_store(on, 40, 9, 3, 64, 1, by_head, fp8)
    for splits in ((16, 0), (16, 12), (32, 23), None):
        for heads, dim in ((32, 128), (4, 16)):
            cases.check_full_heads_decode(on, [1, 15, 0, 16, 17, 257, 1000], heads, dim, 2, 16, by_head, splits, fp8)
            cases.check_full_heads_decode(on, [1, 15, 0, 16, 17, 257], heads, dim, 2, 16, by_head, splits, fp8, finishes=True)
        cases.check_full_heads_decode(on, [1, 15, 0, 16, 17, 257, 1000], 32, 128, 2, 16, by_head, splits, fp8, rounding="by tile")
    many, scale = [*range(1, 120, 3), 0, 257, *range(900, 1000)], cases.level_scale(on)
    cases.check_full_heads_decode(on, many, 32, 128, 2, 16, by_head, None, fp8, rounding=scale, finishes=True)
    for num_splits in (1, None):
        cases.check_decode(on, [1, 17, 65, 257], 9, 3, 64, 16, by_head, num_splits, fp8)
    cases.check_prefill(on, [3, 129, 40, 1], [3, 129, 300, 77], [2, 0, 0, 64], 32, 32, 128, by_head, fp8)
    cases.check_prefill(on, [3, 129, 40, 1], [3, 129, 300, 77], [2, 0, 0, 64], 32, 32, 128, by_head, fp8, rounds=True)


@pytest.mark.parametrize("weight_format", ["none", "int8", "int4", "fp8"])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("in_features,out_features", [(4096, 4096), (16384, 4096), (64, 70), (4096, 12288)])
def test_few_rows_linear(dtype: torch.dtype, rows: int, in_features: int, out_features: int, weight_format: str) -> None:
    if dtype == torch.float32:
        pytest.skip("these kernels serve half precision; float32 goes through cuBLAS")
    for extras in (False, True):
        cases.check_few_rows_linear(Device("cuda", dtype, seed=rows), rows, in_features, out_features, weight_format, extras)


@pytest.mark.parametrize("rows,vocab_size", [(1, 130528), (256, 130528), (3, 70)])
def test_greedy(dtype: torch.dtype, rows: int, vocab_size: int) -> None:
    cases.check_greedy(Device("cuda", dtype, seed=rows), rows, vocab_size)


@pytest.mark.parametrize("vocab_size,spread", [(2, 1.0), (100, 3.0), (8193, 2.0), (130528, 0.02), (130528, 2.0), (130528, 6.0)])
def test_nucleus(dtype: torch.dtype, vocab_size: int, spread: float) -> None:
    nucleus_cases.check_nucleus(Device("cuda", dtype, seed=vocab_size), vocab_size, spread)
    nucleus_cases.check_nucleus_of_ties(Device("cuda", dtype, seed=vocab_size), max(vocab_size, 100))


@pytest.mark.parametrize(
    "vocab_size,spread", [(4, 1.0), (40, 3.0), (8193, 2.0), (16129, 0.1), (130528, 0.02), (130528, 2.0), (151552, 6.0)]
)
def test_top_k(dtype: torch.dtype, vocab_size: int, spread: float) -> None:
    top_k_cases.check_top_k(Device("cuda", dtype, seed=vocab_size), vocab_size, spread)
    top_k_cases.check_top_k_of_ties(Device("cuda", dtype, seed=vocab_size), max(vocab_size, 100))


@pytest.mark.parametrize("rows,axes,pairs", [(1, 2, 32), (64, 2, 32), (128, 1, 24), (256, 2, 32), (300, 1, 24)])
def test_decode_rows(dtype: torch.dtype, rows: int, axes: int, pairs: int) -> None:
    cases.check_decode_rows(Device("cuda", dtype, seed=rows), rows, axes, pairs)


@pytest.mark.parametrize("weight_format", ["int8", "int4", "fp8"])
def test_dequantize(dtype: torch.dtype, weight_format: str) -> None:
    cases.check_dequantize(Device("cuda", dtype), 300, 4096, weight_format)


@pytest.mark.parametrize("num_parts,num_tokens,hidden_size", [(1, 1, 4096), (8, 64, 4096), (4, 7, 100)])
def test_summed_layer_norm(dtype: torch.dtype, num_parts: int, num_tokens: int, hidden_size: int) -> None:
    for scaled in (False, True):
        cases.check_summed_layer_norm(Device("cuda", dtype, seed=num_parts), num_parts, num_tokens, hidden_size, scaled)


@pytest.mark.parametrize("rows,width", [(1, 64), (300, 4096), (257, 16384)])
def test_scaled_rows(dtype: torch.dtype, rows: int, width: int) -> None:
    scaled_cases.check_scaled_rows(Device("cuda", dtype, seed=width), rows, width)


@pytest.mark.parametrize("rows", [1, 7, 65, 300])
def test_scaled_product(dtype: torch.dtype, rows: int) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit floats came with sm_89")
    scaled_cases.check_scaled_product(Device("cuda", dtype, seed=rows), rows, 4096, 16384)


@pytest.mark.parametrize("num_parts,num_tokens,hidden_size", [(1, 300, 4096), (4, 64, 4096), (2, 7, 100)])
def test_scaled_layer_norm(dtype: torch.dtype, num_parts: int, num_tokens: int, hidden_size: int) -> None:
    scaled_cases.check_scaled_layer_norm(Device("cuda", dtype, seed=num_parts), num_parts, num_tokens, hidden_size)


@pytest.mark.parametrize("rows", [2, 16, 17, 33, 64])
@pytest.mark.parametrize("in_features,out_features", [(4096, 12288), (4096, 4096), (16384, 4096), (4096, 130528), (128, 70)])
def test_scaled_few_rows(dtype: torch.dtype, rows: int, in_features: int, out_features: int) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit floats came with sm_89")
    scaled_cases.check_scaled_few_rows(Device("cuda", dtype, seed=rows), rows, in_features, out_features)


@pytest.mark.parametrize("rows,outputs,width", [(65, 16384, 4096), (16384, 12288, 4096), (8200, 4096, 16384), (9001, 384, 256)])
def test_blas_products(dtype: torch.dtype, rows: int, outputs: int, width: int) -> None:
    if dtype == torch.float32 or not is_hopper(torch.device("cuda", 0)):
        pytest.skip("fp8 with a bias of 16 bits, on Hopper")
    scaled_cases.check_blas_products(Device("cuda", dtype, seed=rows), rows, outputs, width)
