"""The kernel of `layer_stream`, in Triton's Gluon for Hopper: see there for what it computes.

A program lives from one attention to the next.  It has three partitions: one warp streams the weights of all four products through shared
memory; one warp fetches the rows of each product as soon as all programs have written them; two warpgroups multiply, finish and normalise.
While the programs wait for each other, weights go on arriving: shared memory takes 6 us of them ahead, which is nearly the wait.  Programs
meet at counters in global memory, so all of them must run at the same time: there are 128, no more than multiprocessors.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from glmserve.kernels.backend import has_triton_of

TESTED_TRITON = "3.6."
HAS_GLUON = has_triton_of(TESTED_TRITON)
if HAS_GLUON:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    DENSE_DONE, NORMED, UP_DONE, DOWN_DONE, NEXT_NORMED = map(gl.constexpr, range(5))  # what programs meet for
    LINE = gl.constexpr(32)
else:
    gl = TensorDescriptor = tma = mbarrier = fence_async_shared = warpgroup_mma = warpgroup_mma_wait = None
    gluon = SimpleNamespace(jit=lambda function=None, **_: function or (lambda decorated: decorated))

NUM_COUNTERS = 5 * 32  # those of the meetings, each with a cache line of its own


def boxes(tensor: torch.Tensor, rows: int, columns: int) -> Any:
    """A TMA descriptor of a dense [rows, columns] tensor: boxes of so many rows and columns."""
    kind = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float8_e4m3fn: gl.float8e4nv}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kind)
    return TensorDescriptor(tensor, list(tensor.shape), [tensor.stride(0), 1], [rows, columns], layout)


@gluon.jit(do_not_specialize=["rows"])
def layer_stream_kernel(
    mixed_desc, normed_desc, active_desc, next_desc, dense_desc, up_desc, down_desc, qkv_desc,
    mixed_scale_ptr, normed_scale_ptr, active_scale_ptr, next_scale_ptr, dense_scale_ptr, up_scale_ptr, down_scale_ptr, qkv_scale_ptr,
    dense_bias_ptr, up_bias_ptr, down_bias_ptr, qkv_bias_ptr, norm_weight_ptr, norm_bias_ptr, next_norm_weight_ptr, next_norm_bias_ptr,
    residual_ptr, middle_ptr, normed_ptr, active_ptr, next_residual_ptr, next_ptr, qkv_ptr, part_ptr, meeting_ptr, rows, alpha, epsilon,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, BOXES: gl.constexpr, STAGES: gl.constexpr,
    ROW_STAGES: gl.constexpr, IN_FLIGHT: gl.constexpr, SCALED: gl.constexpr, FETCH_REGISTERS: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = mixed_desc.block_type.shape[0]
    COLUMNS: gl.constexpr = mixed_desc.block_type.shape[1]
    weights = gl.allocate_shared_memory(dense_desc.dtype, [STAGES * BOXES, 128, COLUMNS], dense_desc.layout)
    tiles = gl.allocate_shared_memory(mixed_desc.dtype, [ROW_STAGES * BOXES, ROWS, COLUMNS], mixed_desc.layout)
    weight_ring = (weights, _barriers(STAGES), _barriers(STAGES))
    row_ring = (tiles, _barriers(ROW_STAGES), _barriers(ROW_STAGES))
    fence_async_shared()
    MOST_TILES: gl.constexpr = INNER // SPLITS // 128 if SCALED else 1
    tile_scales = gl.allocate_shared_memory(gl.float32, [MOST_TILES, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    rings = (weight_ring, row_ring, tile_scales)
    scales = (mixed_scale_ptr, normed_scale_ptr, active_scale_ptr, next_scale_ptr)
    column_scales = (dense_scale_ptr, up_scale_ptr, down_scale_ptr, qkv_scale_ptr)
    biases = (dense_bias_ptr, up_bias_ptr, down_bias_ptr, qkv_bias_ptr)
    norms = (norm_weight_ptr, norm_bias_ptr, next_norm_weight_ptr, next_norm_bias_ptr)
    made = (residual_ptr, middle_ptr, normed_ptr, active_ptr, next_residual_ptr, next_ptr, qkv_ptr, part_ptr)
    gl.warp_specialize(
        [
            (_compute, (rings, scales, column_scales, biases, norms, made, meeting_ptr, rows, alpha, epsilon, HIDDEN, INNER, SPLITS,
                        SCALED)),
            (_stream_weights, (dense_desc, up_desc, down_desc, qkv_desc, weight_ring, HIDDEN, INNER, SPLITS, IN_FLIGHT)),
            (_stream_rows, (mixed_desc, normed_desc, active_desc, next_desc, row_ring, meeting_ptr, HIDDEN, INNER, SPLITS)),
        ],
        [1, 1],
        [FETCH_REGISTERS, FETCH_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _barriers(COUNT: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=1)
    return bars


@gluon.jit
def _stream_weights(
    dense_desc, up_desc, down_desc, qkv_desc, ring, HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, IN_FLIGHT: gl.constexpr
):
    """The warp that fetches weights.  They depend on nothing, so it begins before the kernel in front has ended.

    No more than IN_FLIGHT stages are on their way: enough for the memory, and few enough for all else that passes it to be quick.
    """
    step = 0
    step = _fetch(dense_desc, ring, step, True, IN_FLIGHT, HIDDEN, HIDDEN, SPLITS)
    step = _fetch(up_desc, ring, step, True, IN_FLIGHT, INNER, HIDDEN, 1)
    step = _fetch(down_desc, ring, step, True, IN_FLIGHT, HIDDEN, INNER, SPLITS)
    step = _fetch(qkv_desc, ring, step, True, IN_FLIGHT, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _stream_rows(
    mixed_desc, normed_desc, active_desc, next_desc, ring, meeting_ptr, HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr
):
    """The warp that fetches rows, each kind when all programs have written their part of it."""
    _wait_for_kernel_before()
    step = 0
    step = _fetch(mixed_desc, ring, step, False, 0, HIDDEN, HIDDEN, SPLITS)
    count = _count_when_all_met(meeting_ptr)
    _meet(meeting_ptr, NORMED, count)
    step = _fetch(normed_desc, ring, step, False, 0, INNER, HIDDEN, 1)
    _meet(meeting_ptr, UP_DONE, count)
    step = _fetch(active_desc, ring, step, False, 0, HIDDEN, INNER, SPLITS)
    _meet(meeting_ptr, NEXT_NORMED, count)
    step = _fetch(next_desc, ring, step, False, 0, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _fetch(desc, ring, step, IS_WEIGHT: gl.constexpr, IN_FLIGHT: gl.constexpr, OUT: gl.constexpr, IN: gl.constexpr, SPLITS: gl.constexpr):
    """All boxes of one operand that this program's piece of a product needs, in their order."""
    buffers, here, free = ring
    STAGES: gl.constexpr = here.shape[0]
    BOXES: gl.constexpr = buffers.shape[0] // STAGES
    HEIGHT: gl.constexpr = desc.block_type.shape[0]
    COLUMNS: gl.constexpr = desc.block_type.shape[1]
    SPAN: gl.constexpr = IN // SPLITS
    OUTPUTS: gl.constexpr = OUT * SPLITS // 128  # of each of the 128 programs
    HEIGHTS: gl.constexpr = OUTPUTS // HEIGHT if IS_WEIGHT else 1
    first_row = gl.program_id(0) // SPLITS * OUTPUTS if IS_WEIGHT else 0
    first = gl.program_id(0) % SPLITS * SPAN
    for at in range(first, first + SPAN, BOXES * COLUMNS):
        slot = step % STAGES
        mbarrier.wait(free.index(slot), step // STAGES & 1 ^ 1)
        if IN_FLIGHT > 0:
            mbarrier.wait(here.index((step + STAGES - IN_FLIGHT) % STAGES), (step - IN_FLIGHT) // STAGES & 1, pred=step >= IN_FLIGHT)
        mbarrier.expect(here.index(slot), BOXES * HEIGHTS * desc.block_type.nbytes)
        for box in gl.static_range(BOXES):
            for part in gl.static_range(HEIGHTS):
                buffer = buffers.index(slot * BOXES + box)
                if buffer.shape[0] > HEIGHT:
                    buffer = buffer.slice(part * HEIGHT, HEIGHT, 0)
                tma.async_copy_global_to_shared(desc, [first_row + part * HEIGHT, at + box * COLUMNS], here.index(slot), buffer)
        step += 1
    return step


@gluon.jit
def _compute(
    rings, scales, column_scales, biases, norms, made, meeting_ptr, rows, alpha, epsilon,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, SCALED: gl.constexpr,
):  # fmt: skip
    """The warpgroups: the layer, step by step."""
    mixed_scale_ptr, normed_scale_ptr, active_scale_ptr, next_scale_ptr = scales
    dense_scale_ptr, up_scale_ptr, down_scale_ptr, qkv_scale_ptr = column_scales
    dense_bias_ptr, up_bias_ptr, down_bias_ptr, qkv_bias_ptr = biases
    norm_weight_ptr, norm_bias_ptr, next_norm_weight_ptr, next_norm_bias_ptr = norms
    residual_ptr, middle_ptr, normed_ptr, active_ptr, next_residual_ptr, next_ptr, qkv_ptr, part_ptr = made
    TILES: gl.constexpr = 1 if SCALED else 0  # rows come with a scale for each tile of 128 columns
    WHOLE: gl.constexpr = 2 if SCALED else 0  # with one scale
    _wait_for_kernel_before()
    count = _count_when_all_met(meeting_ptr)
    step = 0
    total, step = _product(rings, step, mixed_scale_ptr, rows, HIDDEN, SPLITS, TILES)
    _store_part(total, part_ptr, dense_scale_ptr, rows, HIDDEN, SPLITS, SCALED)
    _arrive(meeting_ptr, DENSE_DONE, False)
    if gl.program_id(0) < rows:
        _normalise(part_ptr, dense_bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, middle_ptr, normed_ptr, normed_scale_ptr,
                   meeting_ptr, DENSE_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    _arrive(meeting_ptr, NORMED, True)
    total, step = _product(rings, step, normed_scale_ptr, rows, HIDDEN, 1, WHOLE)
    total = _finish(total, up_scale_ptr, up_bias_ptr, INNER // 128, SCALED)
    _store_active(_gelu(total), active_ptr, active_scale_ptr, rows, INNER, SCALED)
    _arrive(meeting_ptr, UP_DONE, True)
    total, step = _product(rings, step, active_scale_ptr, rows, INNER, SPLITS, TILES)
    _store_part(total, part_ptr, down_scale_ptr, rows, HIDDEN, SPLITS, SCALED)
    _arrive(meeting_ptr, DOWN_DONE, False)
    if gl.program_id(0) < rows:
        _normalise(part_ptr, down_bias_ptr, middle_ptr, next_norm_weight_ptr, next_norm_bias_ptr, next_residual_ptr, next_ptr,
                   next_scale_ptr, meeting_ptr, DOWN_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    _arrive(meeting_ptr, NEXT_NORMED, True)
    gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    total, step = _product(rings, step, next_scale_ptr, rows, HIDDEN, 1, WHOLE)
    total = _finish(total, qkv_scale_ptr, qkv_bias_ptr, 3 * HIDDEN // 128, SCALED)
    _store(total, qkv_ptr, rows, 3 * HIDDEN)


@gluon.jit
def _product(rings, step, row_scale_ptr, rows, IN: gl.constexpr, SPLITS: gl.constexpr, ROW_SCALES: gl.constexpr):
    """[128 outputs, ROWS] in float32: this program's piece of a product.  ROW_SCALES: 0 none, 1 by tile of 128 columns, 2 by row."""
    weight_ring, row_ring, tile_scales = rings
    weights, weights_here, weights_free = weight_ring
    tiles, tiles_here, tiles_free = row_ring
    STAGES: gl.constexpr = weights_here.shape[0]
    ROW_STAGES: gl.constexpr = tiles_here.shape[0]
    BOXES: gl.constexpr = weights.shape[0] // STAGES
    ROWS: gl.constexpr = tiles.shape[1]
    COLUMNS: gl.constexpr = tiles.shape[2]
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, ROWS, 256 // weights.dtype.primitive_bitwidth])
    SPAN: gl.constexpr = IN // SPLITS
    row = gl.arange(0, ROWS, gl.SliceLayout(0, ACC))
    if ROW_SCALES == 1:
        mbarrier.wait(tiles_here.index(step % ROW_STAGES), step // ROW_STAGES & 1)  # then all rows' scales are there, too
        _take_scales(tile_scales, row_scale_ptr + gl.program_id(0) % SPLITS * (SPAN // 128), rows, IN // 128, SPAN // 128)
    scale_of_tile = tile_scales._reinterpret(gl.float32, tile_scales.shape, gl.SwizzledSharedLayout(1, 1, 1, [0]))
    total = gl.zeros([128, ROWS], gl.float32, ACC)
    for round in range(SPAN // (BOXES * COLUMNS)):
        slot, row_slot = step % STAGES, step % ROW_STAGES
        mbarrier.wait(weights_here.index(slot), step // STAGES & 1)
        mbarrier.wait(tiles_here.index(row_slot), step // ROW_STAGES & 1)
        if ROW_SCALES == 0:
            for box in gl.static_range(BOXES):
                weight, tile = weights.index(slot * BOXES + box), tiles.index(row_slot * BOXES + box)
                total = warpgroup_mma(weight, tile.permute((1, 0)), total, is_async=True)
            total = warpgroup_mma_wait(0, deps=[total])
        else:
            for box in gl.static_range(BOXES):  # products of fp8 are added in few bits, so each tile's are added up in float32
                weight, tile = weights.index(slot * BOXES + box), tiles.index(row_slot * BOXES + box)
                part = gl.zeros([128, ROWS], gl.float32, ACC)
                part = warpgroup_mma(weight, tile.permute((1, 0)), part, use_acc=False, is_async=True)
                part = warpgroup_mma_wait(0, deps=[part])
                if ROW_SCALES == 1:
                    part *= scale_of_tile.index(round * BOXES + box).load(gl.SliceLayout(0, ACC))[None, :]
                total += part
        gl.thread_barrier()  # both warpgroups have done with the tiles
        mbarrier.arrive(weights_free.index(slot))
        mbarrier.arrive(tiles_free.index(row_slot))
        step += 1
    if ROW_SCALES == 2:
        total *= gl.load(row_scale_ptr + row, mask=row < rows, other=0.0, cache_modifier=".cg")[None, :]
    return total, step


@gluon.jit
def _take_scales(tile_scales, scale_ptr, rows, stride, TILES: gl.constexpr):
    """The scales of [rows, TILES] tiles into shared memory, a tile's beside each other."""
    ROWS: gl.constexpr = tile_scales.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [TILES if TILES < 32 else 32, 1 if TILES >= 32 else 32 // TILES], [1, 8], [0, 1])
    tile = gl.arange(0, TILES, gl.SliceLayout(1, LAYOUT))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, LAYOUT))
    at = row[None, :] * stride + tile[:, None]
    scales = gl.load(scale_ptr + at, mask=(row < rows)[None, :], other=0.0, cache_modifier=".cg")
    gl.thread_barrier()  # the last product's are no longer read
    tile_scales.slice(0, TILES, 0).store(scales)
    gl.thread_barrier()


@gluon.jit
def _store_part(total, part_ptr, scale_ptr, rows, OUT: gl.constexpr, SPLITS: gl.constexpr, SCALED: gl.constexpr):
    """Leave this program's sums to whoever adds up the parts: float32 [SPLITS, rows, OUT]."""
    ACC: gl.constexpr = total.type.layout
    output = gl.program_id(0) // SPLITS * 128 + gl.arange(0, 128, gl.SliceLayout(1, ACC))
    row = gl.arange(0, total.shape[1], gl.SliceLayout(0, ACC))
    if SCALED:
        total *= gl.load(scale_ptr + output)[:, None]
    at = (gl.program_id(0) % SPLITS * rows + row)[None, :] * OUT + output[:, None]
    gl.store(part_ptr + at, total, mask=(row < rows)[None, :])


@gluon.jit
def _finish(total, scale_ptr, bias_ptr, OUTPUTS: gl.constexpr, SCALED: gl.constexpr):
    """A whole sum with its columns' scale and bias; beyond the program's OUTPUTS anything."""
    lane = gl.arange(0, 128, gl.SliceLayout(1, total.type.layout))
    output = gl.program_id(0) * OUTPUTS + gl.minimum(lane, OUTPUTS - 1)
    if SCALED:
        total *= gl.load(scale_ptr + output)[:, None]
    return total + gl.load(bias_ptr + output).to(gl.float32)[:, None]


@gluon.jit
def _gelu(x):
    """tanh GELU, as in kernels/activation.py."""
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    return x / (1.0 + gl.exp(-2.0 * inner))


@gluon.jit
def _store_active(active, active_ptr, active_scale_ptr, rows, INNER: gl.constexpr, SCALED: gl.constexpr):
    """The program's 128 numbers of each row, rounded: to fp8 with a scale of their own."""
    if SCALED:
        row = gl.arange(0, active.shape[1], gl.SliceLayout(0, active.type.layout))
        scale = gl.maximum(gl.max(gl.abs(active), 0) / 448.0, 1e-12)
        gl.store(active_scale_ptr + row * (INNER // 128) + gl.program_id(0), scale, mask=row < rows)
        active = gl.minimum(gl.maximum(active / scale[None, :], -448.0), 448.0)  # the quotient may be a rounding error larger
    _store(active, active_ptr, rows, INNER)


@gluon.jit
def _store(total, out_ptr, rows, OUT: gl.constexpr):
    OUTPUTS: gl.constexpr = OUT // 128
    STORED: gl.constexpr = gl.BlockedLayout([16, 1], [8, 4], [1, 8], [0, 1])
    stored = gl.convert_layout(total.to(out_ptr.dtype.element_ty), STORED)
    lane = gl.arange(0, 128, gl.SliceLayout(1, STORED))
    row = gl.arange(0, total.shape[1], gl.SliceLayout(0, STORED))
    at = row[None, :] * OUT + (gl.program_id(0) * OUTPUTS + lane)[:, None]
    gl.store(out_ptr + at, stored, mask=(lane < OUTPUTS)[:, None] & (row < rows)[None, :])


@gluon.jit
def _normalise(
    part_ptr, product_bias_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, level_ptr, level_scale_ptr, meeting_ptr,
    MEETING: gl.constexpr, count, rows, alpha, epsilon, HIDDEN: gl.constexpr, SPLITS: gl.constexpr, SCALED: gl.constexpr,
):  # fmt: skip
    """LayerNorm of one row, as in kernels/norm.py, once all programs have left their parts of it."""
    SPREAD: gl.constexpr = gl.BlockedLayout([4], [32], [8], [0])
    column = gl.arange(0, HIDDEN, SPREAD)
    row = gl.program_id(0) * HIDDEN
    weight, bias = gl.load(weight_ptr + column), gl.load(bias_ptr + column)
    product_bias = gl.load(product_bias_ptr + column)
    residual = gl.load(residual_ptr + row + column, cache_modifier=".cg")
    _meet(meeting_ptr, MEETING, count)
    total = gl.load(part_ptr + row + column, cache_modifier=".cg")
    for split in gl.static_range(1, SPLITS):
        total += gl.load(part_ptr + split * rows * HIDDEN + row + column, cache_modifier=".cg")
    total += product_bias.to(gl.float32)
    total += alpha * residual.to(gl.float32)
    centred = total - gl.sum(total, 0) / HIDDEN
    inverse_deviation = 1.0 / gl.sqrt(gl.sum(centred * centred, 0) / HIDDEN + epsilon)
    normed = centred * inverse_deviation * weight.to(gl.float32) + bias.to(gl.float32)
    gl.store(out_ptr + row + column, normed.to(out_ptr.dtype.element_ty))
    if SCALED:
        scale = gl.maximum(gl.max(gl.abs(normed), 0) / 448.0, 1e-12)
        gl.store(level_scale_ptr + gl.program_id(0), scale)
        level = gl.minimum(gl.maximum(normed / scale, -448.0), 448.0)
        gl.store(level_ptr + row + column, level.to(level_ptr.dtype.element_ty))


@gluon.jit
def _wait_for_kernel_before():
    gl.inline_asm_elementwise("griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _count_when_all_met(meeting_ptr):
    """What each meeting's counter shows when all programs of this launch have come.

    The counters are never set back and may overflow, since the number of programs is a power of two.  Between launches all show the same;
    the last meeting's, to which this program has not come yet, still tells what that was.
    """
    return (_read(meeting_ptr + NEXT_NORMED * LINE) & -gl.num_programs(0)) + gl.num_programs(0)


@gluon.jit
def _arrive(meeting_ptr, MEETING: gl.constexpr, BY_TMA: gl.constexpr):
    """Tell the others that all threads of this partition have stored what they will read, maybe by TMA."""
    if BY_TMA:
        gl.inline_asm_elementwise("fence.proxy.async; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    gl.thread_barrier()
    gl.atomic_add(meeting_ptr + MEETING * LINE, 1, sem="release", scope="gpu")


@gluon.jit
def _meet(meeting_ptr, MEETING: gl.constexpr, count):
    """Until all programs have come."""
    while _read(meeting_ptr + MEETING * LINE) - count < 0:
        pass
    gl.inline_asm_elementwise("fence.proxy.async; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _read(counter_ptr):
    address = counter_ptr.to(gl.int64)
    return gl.inline_asm_elementwise("ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [address], dtype=gl.int32, is_pure=False, pack=1)
