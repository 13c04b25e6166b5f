"""Rotate the queries and keys of a step and write its keys and values into the paged cache, in one pass over q|k|v."""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton
from glmserve.kernels.scaled_rows import ScaledProduct

_HEADS_A_PROGRAM = 8


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Returns the rotated queries and keys [num_tokens, num_heads + num_kv_heads, head_dim]; keys and values also go to their slots.

    qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim], heads of q, then k, then v; on a GPU rotated in place, and what is
    returned is a part of it.
    cos, sin: float32 [num_tokens, axes, pairs] with head_dim = axes * 2 * pairs.  The head dim is cut into `axes` parts, one a position
    axis; inside a part, element i turns with element i + pairs ("rotate half").  Two axes: ChatGLM-6B; one: Llama.
    key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides.
    slot_mapping: int64 [num_tokens], block * block_size + offset.
    """
    if not use_triton(qkv):
        return rotate_and_store_torch(qkv, cos, sin, key_cache, value_cache, slot_mapping, num_heads)
    return rotate_and_store_triton(qkv, cos, sin, key_cache, value_cache, slot_mapping, num_heads)


def rotate_and_store_torch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """The plain twin of `rotate_and_store`."""
    num_rotated = num_heads + key_cache.shape[2]
    rotated = _rotate(qkv[:, :num_rotated], cos, sin)
    _store(key_cache, slot_mapping, rotated[:, num_heads:])
    _store(value_cache, slot_mapping, qkv[:, num_rotated:])
    return rotated


def _store(cache: torch.Tensor, slot_mapping: torch.Tensor, heads: torch.Tensor) -> None:
    if cache.dtype == torch.float8_e4m3fn:  # bytes are copied on every device; a number too large becomes the largest, as on a GPU
        largest = torch.finfo(cache.dtype).max
        cache, heads = cache.view(torch.uint8), heads.clamp(-largest, largest).to(cache.dtype).view(torch.uint8)
    if cache.is_contiguous():  # as on a CPU: a plain copy of rows
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, heads.to(cache.dtype))
    else:
        cache[slot_mapping // cache.shape[1], slot_mapping % cache.shape[1]] = heads.to(cache.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    num_tokens, heads, head_dim = x.shape
    axes, pairs = cos.shape[1:]
    parts = x.reshape(num_tokens, heads, axes, 2, pairs).float()
    first, second = parts[..., 0, :], parts[..., 1, :]
    turned = torch.empty_like(parts)
    cos, sin = cos[:, None], sin[:, None]  # [num_tokens, 1, axes, pairs]
    torch.mul(parts, cos[..., None, :], out=turned)
    turned[..., 0, :].addcmul_(second, sin, value=-1)
    turned[..., 1, :].addcmul_(first, sin)
    return turned.reshape(num_tokens, heads, head_dim).to(x.dtype)


def rotate_and_store_triton(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """The Triton path of `rotate_and_store`, in place: one program a token and a few heads, all q, all k or all v."""
    _launch(qkv, None, qkv, cos, sin, key_cache, value_cache, slot_mapping, num_heads)
    return qkv[:, : num_heads + key_cache.shape[2]]


def finish_rotate_and_store(
    product: ScaledProduct,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """`rotate_and_store` of q|k|v that is still a product of fp8 levels.  On a GPU.

    Returns all of q|k|v, [num_tokens, num_heads + 2 * num_kv_heads, head_dim] in the bias' dtype, q and k rotated; it takes the levels'
    place in memory.  Other arguments as in `rotate_and_store`.  Twin: `product.finished()`, then `rotate_and_store_torch`.
    """
    levels = product.levels.view(product.levels.shape[0], -1, key_cache.shape[3])
    out = levels.view(product.bias.dtype) if product.bias.element_size() == 2 else torch.empty_like(levels, dtype=product.bias.dtype)
    _launch(levels, product, out, cos, sin, key_cache, value_cache, slot_mapping, num_heads)
    return out


def _launch(
    qkv: torch.Tensor,
    product: ScaledProduct | None,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
) -> None:
    num_tokens, _, head_dim = qkv.shape
    num_kv_heads = key_cache.shape[2]
    assert cos.is_contiguous() and sin.is_contiguous()
    heads = min(_HEADS_A_PROGRAM, next_power_of_2(num_kv_heads))
    query_tiles, kv_tiles = triton.cdiv(num_heads, heads), triton.cdiv(num_kv_heads, heads)
    to_finish = (cos, cos, cos) if product is None else (product.row_scale, product.column_scale, product.bias)
    _rotate_and_store_kernel[(num_tokens, query_tiles + 2 * kv_tiles)](
        qkv, *to_finish, out, cos, sin, key_cache, value_cache, slot_mapping, num_heads, num_kv_heads, query_tiles, kv_tiles,
        qkv.stride(0), *key_cache.stride(), *value_cache.stride(),
        BLOCK_SIZE=key_cache.shape[1], AXES=cos.shape[1], PAIRS=cos.shape[2], HALF=next_power_of_2(head_dim // 2), HEADS=heads,
        FINISHES=product is not None, num_warps=max(1, min(4, heads // 4)), **early_start(qkv),
    )  # fmt: skip


@triton.jit
def _rotate_and_store_kernel(
    qkv_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, out_ptr, cos_ptr, sin_ptr, key_ptr, value_ptr, slot_ptr,
    num_heads, num_kv_heads, query_tiles, kv_tiles,
    qkv_stride, key_s0, key_s1, key_s2, key_s3, value_s0, value_s1, value_s2, value_s3,
    BLOCK_SIZE: tl.constexpr, AXES: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, FINISHES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    token, tile = tl.program_id(0), tl.program_id(1)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    HEAD_DIM: tl.constexpr = 2 * AXES * PAIRS
    lane = tl.arange(0, HALF)  # one lane a pair, over all axes
    first = (lane // PAIRS) * 2 * PAIRS + lane % PAIRS
    second = first + PAIRS
    kind = tl.where(tile < query_tiles, 0, tl.where(tile < query_tiles + kv_tiles, 1, 2))  # q, k or v
    tile_of_kind = tile - tl.where(kind == 0, 0, query_tiles + (kind - 1) * kv_tiles)
    head = tile_of_kind * HEADS + tl.arange(0, HEADS)
    inside = (head < tl.where(kind == 0, num_heads, num_kv_heads))[:, None] & (lane < AXES * PAIRS)[None, :]
    head_in_row = head + tl.where(kind == 0, 0, num_heads + (kind - 1) * num_kv_heads)
    at1 = head_in_row[:, None] * HEAD_DIM + first[None, :]
    at2 = at1 + PAIRS
    row = token.to(tl.int64) * qkv_stride
    x1 = tl.load(qkv_ptr + row + at1, mask=inside, other=0.0)
    x2 = tl.load(qkv_ptr + row + at2, mask=inside, other=0.0)
    if FINISHES:
        row_scale = tl.load(row_scale_ptr + token)
        x1 = _finished(x1, at1, inside, row_scale, column_scale_ptr, bias_ptr).to(out_ptr.dtype.element_ty)
        x2 = _finished(x2, at2, inside, row_scale, column_scale_ptr, bias_ptr).to(out_ptr.dtype.element_ty)
    if kind < 2:
        cos = tl.load(cos_ptr + token * AXES * PAIRS + lane, mask=lane < AXES * PAIRS, other=0.0)[None, :]
        sin = tl.load(sin_ptr + token * AXES * PAIRS + lane, mask=lane < AXES * PAIRS, other=0.0)[None, :]
        y1 = x1.to(tl.float32) * cos - x2.to(tl.float32) * sin
        y2 = x2.to(tl.float32) * cos + x1.to(tl.float32) * sin
        x1 = y1.to(out_ptr.dtype.element_ty)
        x2 = y2.to(out_ptr.dtype.element_ty)
    if FINISHES or kind < 2:
        tl.store(out_ptr + row + at1, x1, mask=inside)
        tl.store(out_ptr + row + at2, x2, mask=inside)
    if kind > 0:
        slot = tl.load(slot_ptr + token)
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        if kind == 1:
            target = key_ptr + block * key_s0 + offset * key_s1 + head[:, None] * key_s2
            tl.store(target + first[None, :] * key_s3, x1.to(key_ptr.dtype.element_ty), mask=inside)
            tl.store(target + second[None, :] * key_s3, x2.to(key_ptr.dtype.element_ty), mask=inside)
        else:
            target = value_ptr + block * value_s0 + offset * value_s1 + head[:, None] * value_s2
            tl.store(target + first[None, :] * value_s3, x1.to(value_ptr.dtype.element_ty), mask=inside)
            tl.store(target + second[None, :] * value_s3, x2.to(value_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _finished(levels, at, inside, row_scale, column_scale_ptr, bias_ptr):
    scale = row_scale * tl.load(column_scale_ptr + at, mask=inside, other=0.0)
    return levels.to(tl.float32) * scale + tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
