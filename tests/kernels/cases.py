"""Random inputs for the kernels and how to compare a kernel with its plain twin; shared by the CPU interpreter's tests and the GPU's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glmserve.kernels import (
    activation,
    decode_pieces,
    decode_rows,
    dense_prefill,
    few_rows_linear,
    full_heads_decode,
    greedy,
    norm,
    one_row_linear,
    paged_attention,
    paged_decode,
    paged_prefill,
    quantized_linear,
    rotary_store,
    scaled_rows,
)
from glmserve.kernels.scaled_rows import Rounding

# ||out - twin|| / ||twin||; NaN never passes
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROUNDED_BOUND = {
    "cpu": 0.12,
    "cuda": 1e-2,
}  # a level may differ where a quotient lies between two; the interpreter cuts where a GPU rounds
FP8_TOLERANCE = 1e-2  # of what a kernel stored in fp8, and of what it makes of that


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference|| in float64."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm().clamp(min=1e-30))


def assert_close(out: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    """Every element written and the whole within the dtype's tolerance."""
    assert out.shape == reference.shape
    assert not out.isnan().any()
    assert relative_error(out, reference) <= TOLERANCE[dtype]


@dataclass
class Device:
    """Where a case runs, with fresh random numbers for each."""

    name: str
    dtype: torch.dtype
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.name).manual_seed(self.seed)  # on the device: weights are large

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.name).to(dtype or self.dtype)

    def randint(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator, device=self.name)

    def randperm(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.generator, device=self.name)


def check_layer_norm(on: Device, num_tokens: int, hidden_size: int, with_residual: bool) -> None:
    x, residual = on.randn(num_tokens, hidden_size), on.randn(num_tokens, hidden_size) if with_residual else None
    arguments = (x, residual, 7.48, on.randn(hidden_size), on.randn(hidden_size), 1e-5)
    assert_close(norm.residual_layer_norm_triton(*arguments), norm.residual_layer_norm_torch(*arguments), on.dtype)


def check_rms_norm(on: Device, num_tokens: int, hidden_size: int, with_residual: bool) -> None:
    x, residual = on.randn(num_tokens, hidden_size), on.randn(num_tokens, hidden_size) if with_residual else None
    arguments = (x, residual, on.randn(hidden_size), 1e-5)
    for out, reference in zip(norm.residual_rms_norm_triton(*arguments), norm.residual_rms_norm_torch(*arguments), strict=True):
        assert_close(out, reference, on.dtype)


def check_activations(on: Device, num_tokens: int, width: int) -> None:
    x = on.randn(num_tokens, 2 * width) * 3
    assert_close(activation.gelu_tanh_triton(x), activation.gelu_tanh_torch(x.float()), on.dtype)
    assert_close(activation.silu_and_mul_triton(x), activation.silu_and_mul_torch(x.float()), on.dtype)


def check_one_row_linear(on: Device, in_features: int, out_features: int, with_bias: bool, gelu: bool) -> None:
    x, weight = on.randn(1, in_features), on.randn(out_features, in_features) * in_features**-0.5
    bias = on.randn(out_features) if with_bias else None
    reference = one_row_linear.one_row_linear_torch(x.float(), weight.float(), None if bias is None else bias.float(), gelu)
    assert_close(one_row_linear.one_row_linear(x, weight, None, bias, gelu), reference, on.dtype)


def packed_weight(on: Device, weight_format: str, out_features: int, in_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight in one of the layouts of kernels/quantized_linear.py and its scale, sized so that products are about 1."""
    scale = (on.randn(out_features, 1, dtype=torch.float32).abs() + 0.5) * in_features**-0.5
    if weight_format == "fp8":
        levels = (on.randn(out_features, in_features, dtype=torch.float32) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
        return levels, scale / 60
    if weight_format == "int8":
        return (on.randint(256, out_features, in_features) - 128).to(torch.int8), scale / 70
    return on.randint(256, out_features, in_features // 2).to(torch.uint8), scale / 5


def check_few_rows_linear(on: Device, rows: int, in_features: int, out_features: int, weight_format: str, extras: bool) -> None:
    """Both kernels for few rows; `extras`: bias and GELU."""
    x = on.randn(rows, in_features)
    if weight_format == "none":
        weight, scale = on.randn(out_features, in_features) * in_features**-0.5, None
        plain = weight.float()
    else:
        weight, scale = packed_weight(on, weight_format, out_features, in_features)
        plain = quantized_linear.dequantize_torch(weight, scale, torch.float32)
    bias = on.randn(out_features) if extras else None
    product = x.float() @ plain.t()
    whole = product + bias.float() if bias is not None else product
    reference = activation.gelu_tanh_torch(whole) if extras else whole
    if weight_format != "fp8":
        assert_close(few_rows_linear.few_rows_linear(x, weight, scale, bias, gelu=extras), reference, on.dtype)
        assert_close(few_rows_linear.few_rows_parts(x, weight, scale).float().sum(dim=0), product, on.dtype)
    if rows == 1:
        assert_close(one_row_linear.one_row_linear(x, weight, scale, bias, gelu=extras), reference, on.dtype)


def check_greedy(on: Device, rows: int, vocab_size: int) -> None:
    """Ties, a NaN, an infinity, both zeros, rows below zero and the ends of the row among the cases."""
    logits = on.randn(rows + 8, vocab_size).round(decimals=1)  # many equal scores
    logits[5] = -logits[5].abs() - 1
    logits[6] = torch.zeros(vocab_size, dtype=on.dtype, device=on.name).index_fill(0, torch.tensor([0, 3], device=on.name), -0.0)
    logits[7], logits[7, 0] = -float("nan"), 1.0
    logits[0, -1], logits[1, 0], logits[2, vocab_size // 2], logits[3, 1], logits[4, -1] = 99, 99, float("nan"), float("inf"), -float("inf")
    out = greedy.greedy_ids_triton(logits, -7)
    assert out.tolist() == greedy.greedy_ids_torch(logits.cpu(), -7).tolist()
    assert out[:5].tolist() == [vocab_size - 1, 0, -7, -7, -7]
    assert out[6:8].tolist() == [0, -7]


def check_decode_rows(on: Device, rows: int, axes: int, pairs: int) -> None:
    """Known and unknown token ids, rows in any persistent place."""
    places, blocks, positions = rows + 3, 5, 40
    packed = on.randint(positions, rows + 2, decode_rows.NUM_FIELDS + blocks).int()
    packed[:rows, decode_rows.ROW] = on.randperm(places)[:rows].int()
    packed[::2, decode_rows.TOKEN_ID] = -1
    last = on.randint(1000, places)
    tables = on.randn(positions, pairs, dtype=torch.float32), on.randn(positions, pairs, dtype=torch.float32)
    for seq_lens in (on.randint(positions, rows), on.randint(2, rows) * 1900 + 1, on.randint(10, rows) // 9 * 1900, on.randint(1, rows)):
        packed[:rows, decode_rows.SEQ_LEN] = seq_lens
        for more in {decode_pieces.num_more_programs(rows, heads, 1) for heads in (2, 32)} | {0}:
            out = decode_rows.unpack_rows_triton(packed[:rows], last, *tables, axes, more)
            reference = decode_rows.unpack_rows_torch(packed[:rows], last, *tables, axes)
            pieces = decode_pieces.pieces_torch(out.seq_lens, more)
            assert out.pieces is not None and out.pieces.num_programs == pieces.num_programs
            for made, expected in zip((*out[:-1], out.pieces.table), (*reference[:-1], pieces.table), strict=True):
                assert made.dtype == expected.dtype and made.is_contiguous() and torch.equal(made, expected)
    sampled = on.randint(1000, rows)
    sampled[-1] = -1
    expected_last = last.clone()
    expected_last[packed[:rows, decode_rows.ROW]] = sampled.clamp(min=0)
    for_host = torch.full((rows + 1,), 7, dtype=torch.int64, pin_memory=on.name == "cuda")
    decode_rows.remember_ids_triton(packed, sampled, last, for_host[:rows])
    assert torch.equal(last, expected_last)
    assert for_host.tolist() == [*sampled.tolist(), 7]  # it is there, since the comparison above waited for the device


def check_dequantize(on: Device, out_features: int, in_features: int, weight_format: str) -> None:
    weight, scale = packed_weight(on, weight_format, out_features, in_features)
    out, reference = (make(weight, scale, on.dtype) for make in (quantized_linear.dequantize_triton, quantized_linear.dequantize_torch))
    assert torch.equal(out, reference)


def check_summed_layer_norm(on: Device, num_parts: int, num_tokens: int, hidden_size: int, scaled: bool) -> None:
    """LayerNorm that finishes a product: parts, scales, bias."""
    scales = (on.randn(num_tokens, dtype=torch.float32).abs(), on.randn(hidden_size, dtype=torch.float32)) if scaled else (None, None)
    product = norm.Summands(on.randn(num_parts, num_tokens, hidden_size, dtype=torch.float32), on.randn(hidden_size), *scales)
    arguments = (on.randn(num_tokens, hidden_size), 7.48, on.randn(hidden_size), on.randn(hidden_size), 1e-5)
    given = [product]
    if product.row_scale is not None:
        given.append(product._replace(row_scale=product.row_scale[0].expand(num_tokens)))
    for x in given:
        assert_close(norm.residual_layer_norm_triton(x, *arguments), norm.residual_layer_norm_torch(x, *arguments), on.dtype)


def paged_cache(
    on: Device, num_blocks: int, block_size: int, heads: int, dim: int, by_head: bool, cache_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V caches of random numbers in either memory order; both show [num_blocks, block_size, heads, dim]."""
    shape = (num_blocks, heads, block_size, dim) if by_head else (num_blocks, block_size, heads, dim)
    key, value = on.randn(*shape, dtype=cache_dtype), on.randn(*shape, dtype=cache_dtype)
    return (key.transpose(1, 2), value.transpose(1, 2)) if by_head else (key, value)


def assert_stored(cache: torch.Tensor, twin: torch.Tensor, dtype: torch.dtype) -> None:
    """The caches of a kernel and its twin agree.  fp8: numbers that differ in their last bit may be rounded to neighbouring levels."""
    if cache.dtype == torch.float8_e4m3fn:
        assert not cache.float().isnan().any() and relative_error(cache.float(), twin.float()) <= FP8_TOLERANCE
    else:
        assert_close(cache, twin, dtype)


def check_rotary_store(
    on: Device, num_tokens: int, heads: int, kv_heads: int, dim: int, axes: int, by_head: bool, cache_dtype: torch.dtype | None = None
) -> None:
    block_size, num_blocks = 16, -(-num_tokens // 16) + 2
    qkv = on.randn(num_tokens, heads + 2 * kv_heads, dim)
    qkv[:, -1, :2] = torch.tensor([1000.0, -60000.0])  # beyond the largest number of fp8
    angles = on.randn(num_tokens, axes, dim // (2 * axes), dtype=torch.float32) * 10
    slots = on.randperm((num_blocks - 1) * block_size)[:num_tokens] + block_size
    cache = paged_cache(on, num_blocks, block_size, kv_heads, dim, by_head, cache_dtype)
    twin = tuple(tensor.clone() for tensor in cache)
    reference = rotary_store.rotate_and_store_torch(qkv, angles.cos(), angles.sin(), *twin, slots, heads)
    rotated = rotary_store.rotate_and_store_triton(qkv, angles.cos(), angles.sin(), *cache, slots, heads)
    assert_close(rotated, reference, on.dtype)
    assert_stored(cache[0], twin[0], on.dtype)
    assert torch.equal(cache[1].float(), twin[1].float())


def check_decode(
    on: Device, seq_lens: list[int], heads: int, kv_heads: int, dim: int, block_size: int, by_head: bool, splits: int | None,
    cache_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    tables, num_blocks = _tables(on, seq_lens, block_size)
    key, value = paged_cache(on, num_blocks, block_size, kv_heads, dim, by_head, cache_dtype)
    key[0], value[0] = float("nan"), float("nan")  # nobody may read the block that no table names
    query = on.randn(len(seq_lens), heads, dim)
    lens = torch.tensor(seq_lens, dtype=torch.int32, device=on.name)
    out = paged_decode.paged_decode_attention(query, key, value, tables, lens, dim**-0.5, splits)
    ones = [1] * len(seq_lens)
    reference = paged_attention.paged_attention_torch(
        query.float(), key.float(), value.float(), tables, ones, seq_lens, [0] * len(seq_lens), dim**-0.5
    )
    assert_close(out, reference, on.dtype)


def check_finish_rotary_store(on: Device, num_tokens: int, heads: int, kv_heads: int, dim: int, axes: int, by_head: bool) -> None:
    """q|k|v that comes as a product of fp8 levels."""
    width, num_blocks = (heads + 2 * kv_heads) * dim, -(-num_tokens // 16) + 2
    product = _scaled_product(on, num_tokens, width)
    angles = on.randn(num_tokens, axes, dim // (2 * axes), dtype=torch.float32) * 10
    slots = torch.randperm(num_blocks * 16, generator=on.generator, device=on.name)[:num_tokens]
    cache = paged_cache(on, num_blocks, 16, heads=kv_heads, dim=dim, by_head=by_head)
    twin = tuple(tensor.clone() for tensor in cache)
    finished = scaled_rows.finish_torch(*product, on.dtype).view(num_tokens, -1, dim)
    reference = rotary_store.rotate_and_store_torch(finished, angles.cos(), angles.sin(), *twin, slots, heads)
    out = rotary_store.finish_rotate_and_store(product, angles.cos(), angles.sin(), *cache, slots, heads)
    assert_close(out[:, : heads + kv_heads], reference, on.dtype)
    assert_close(out[:, heads + kv_heads :], finished[:, heads + kv_heads :], on.dtype)
    for written, expected in zip(cache, twin, strict=True):
        assert_close(written, expected, on.dtype)


def _scaled_product(on: Device, num_tokens: int, width: int) -> scaled_rows.ScaledProduct:
    levels = on.randn(num_tokens, width, dtype=torch.bfloat16) * 30
    scales = (on.randn(num_tokens, dtype=torch.float32).abs() / 30, on.randn(width, dtype=torch.float32).abs())
    return scaled_rows.ScaledProduct(levels, *scales, on.randn(width))


def check_full_heads_decode(
    on: Device, seq_lens: list[int], heads: int, dim: int, axes: int, block_size: int, by_head: bool,
    splits: tuple[int, int] | None,
    cache_dtype: torch.dtype | None = None, rounding: Rounding | None = None, finishes: bool = False,
) -> None:  # fmt: skip
    """Sequence length 0 is an unused row: its output is not looked at.  `finishes`: q|k|v comes as a product of fp8 levels.

    splits: the most parts of a sequence, and how many more programs than sequences there are; None: as when serving.
    """
    tables, num_blocks = _tables(on, seq_lens, block_size)
    cache = paged_cache(on, num_blocks, block_size, heads, dim, by_head, cache_dtype)
    cache[0][0], cache[1][0] = float("nan"), float("nan")
    given = qkv = on.randn(len(seq_lens), 3 * heads, dim)
    if finishes:
        given = _scaled_product(on, len(seq_lens), 3 * heads * dim)
        qkv = scaled_rows.finish_torch(*given, on.dtype).view(qkv.shape)
    angles = on.randn(len(seq_lens), axes, dim // (2 * axes), dtype=torch.float32) * 10
    newest = [max(seq_len - 1, 0) for seq_len in seq_lens]
    slots = [int(tables[row, at // block_size]) * block_size + at % block_size for row, at in enumerate(newest)]
    slots = torch.tensor(slots, device=on.name)
    lens = torch.tensor(seq_lens, dtype=torch.int32, device=on.name)
    twin = tuple(tensor.clone() for tensor in cache)
    rotated = rotary_store.rotate_and_store_torch(qkv, angles.cos(), angles.sin(), *twin, slots, heads)
    used = [row for row, seq_len in enumerate(seq_lens) if seq_len]
    ones, lengths = [1] * len(used), [seq_lens[row] for row in used]
    reference = paged_attention.paged_attention_torch(
        rotated[used, :heads].float(), twin[0].float(), twin[1].float(), tables[used], ones, lengths, [0] * len(used), dim**-0.5
    )
    reference = reference.flatten(1)
    if splits is None:
        pieces = decode_pieces.pieces_torch(lens, decode_pieces.num_more_programs(len(seq_lens), heads, cache[0].itemsize))
    else:
        pieces = decode_pieces.pieces_torch(lens, splits[1], splits[0])
    out = full_heads_decode.full_heads_decode(given, angles.cos(), angles.sin(), *cache, slots, tables, pieces, dim**-0.5, rounding)
    if isinstance(out, scaled_rows.ScaledRows):
        by_tile = isinstance(rounding, str)
        rounded = scaled_rows.scale_tiles_torch(reference) if by_tile else scaled_rows.scale_rows_torch(reference, rounding)
        assert_close(out.scale[used], rounded.scale, torch.bfloat16)
        assert relative_error(out.numbers()[used], rounded.numbers()) <= ROUNDED_BOUND[on.name]
    elif cache_dtype is None:
        assert_close(out[used], reference, on.dtype)
    else:  # the newest key may be rounded to a neighbouring level
        assert relative_error(out[used], reference) <= FP8_TOLERANCE
    for written, expected in zip(cache, twin, strict=True):
        assert_stored(written[1:], expected[1:], on.dtype)


def check_dense_prefill(
    on: Device, seq_lens: list[int], context_lens: list[int], heads: int, kv_heads: int, dim: int, rounds: bool = False
) -> None:
    """The last of the sequences is not looked at: it is all NaN, and none of it may reach the others.  `rounds`: to fp8."""
    poison, count = 70, sum(seq_lens)
    qkv = on.randn(count + poison, heads + 2 * kv_heads, dim)
    qkv[count:] = float("nan")
    query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
    starts = torch.tensor([0, *seq_lens, poison], device=on.name).cumsum(0).int()
    contexts = torch.tensor([*context_lens, poison - 1], dtype=torch.int32, device=on.name)
    scale = level_scale(on) if rounds else None
    out = dense_prefill.dense_prefill_attention(query, key, value, starts, contexts, max(seq_lens), dim**-0.5, level_scale=scale)
    sequences = zip(*(part[:count].float().split(seq_lens) for part in (query, key, value)), context_lens, strict=True)
    reference = [paged_attention.attend_one_sequence(*sequence, dim**-0.5) for sequence in sequences]
    assert_mixed(out[:count], torch.cat(reference), on, scale)


def level_scale(on: Device) -> torch.Tensor:
    """Such that a few of many normal numbers exceed the largest level: they become it."""
    return (2 + on.randn(1, dtype=torch.float32).abs()[0]) / scaled_rows.LARGEST_FP8


def assert_mixed(out: torch.Tensor, reference: torch.Tensor, on: Device, scale: torch.Tensor | None) -> None:
    """What attention gave, or its levels: as near as those of what it should have given."""
    if scale is None:
        assert_close(out, reference, on.dtype)
        return
    assert out.dtype == torch.float8_e4m3fn and out.shape == reference.shape
    reference = reference.flatten(1)
    exact = (reference / scale).clamp(-scaled_rows.LARGEST_FP8, scaled_rows.LARGEST_FP8)
    least = relative_error(scaled_rows.scale_rows_torch(reference, scale).values.float(), exact)
    assert relative_error(out.flatten(1).float(), exact) <= (1.05 * least if on.name == "cuda" else ROUNDED_BOUND["cpu"])


def check_prefill(
    on: Device, query_lens: list[int], seq_lens: list[int], context_lens: list[int], heads: int, kv_heads: int, dim: int, by_head: bool,
    cache_dtype: torch.dtype | None = None, rounds: bool = False,
) -> None:  # fmt: skip
    block_size = 16
    tables, num_blocks = _tables(on, seq_lens, block_size)
    key, value = paged_cache(on, num_blocks, block_size, kv_heads, dim, by_head, cache_dtype)
    key[0], value[0] = float("nan"), float("nan")
    query = on.randn(sum(query_lens), heads, dim)
    starts = torch.tensor([0, *query_lens], device=on.name).cumsum(0).int()
    lens = torch.tensor(seq_lens, dtype=torch.int32, device=on.name)
    contexts = torch.tensor(context_lens, dtype=torch.int32, device=on.name)
    scale = level_scale(on) if rounds else None
    out = paged_prefill.paged_prefill_attention(query, key, value, tables, starts, lens, contexts, max(query_lens), dim**-0.5, scale)
    reference = paged_attention.paged_attention_torch(
        query.float(), key.float(), value.float(), tables, query_lens, seq_lens, context_lens, dim**-0.5
    )
    assert_mixed(out, reference, on, scale)


def _tables(on: Device, seq_lens: list[int], block_size: int) -> tuple[torch.Tensor, int]:
    """Block tables of distinct random blocks, block 0 unused."""
    counts = [-(-seq_len // block_size) for seq_len in seq_lens]
    order = on.randperm(sum(counts)).cpu() + 1
    table = torch.zeros(len(seq_lens), max(counts), dtype=torch.int32)
    start = 0
    for row, count in enumerate(counts):
        table[row, :count] = order[start : start + count]
        start += count
    return table.to(on.name), sum(counts) + 1
