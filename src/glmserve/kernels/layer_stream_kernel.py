"""The kernel of `layer_stream`, in Triton's Gluon for Hopper: see there for what it computes.

A program lives from one attention to the next.  It has three partitions: one warp streams the weights of all four products through shared
memory; one warp fetches the rows of each product as soon as all programs have written them; two warpgroups multiply, finish and normalise.
While the programs wait for each other, weights go on arriving: shared memory takes 6 us of them ahead, which is nearly the wait.  Programs
meet at counters in global memory, so all of them must run at the same time: there are 128, no more than multiprocessors.
"""

from __future__ import annotations

from typing import Any

import torch

from glmserve.kernels.backend import gdc_launch_dependents, gdc_wait
from glmserve.kernels.gluon_backend import TensorDescriptor, fence_async_shared, gl, gluon, mbarrier, tma
from glmserve.kernels.layer_stream_meetings import (
    DENSE_DONE,
    DOWN_DONE,
    NEXT_NORMED,
    NORMED,
    UP_DONE,
    arrive,
    count_when_all_met,
    meet,
)
from glmserve.kernels.layer_stream_steps import finish, gelu, normalise, product, store, store_active, store_part


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
    step = _fetch(dense_desc, ring, step, IN_FLIGHT, HIDDEN, HIDDEN, SPLITS)
    step = _fetch(up_desc, ring, step, IN_FLIGHT, INNER, HIDDEN, 1)
    step = _fetch(down_desc, ring, step, IN_FLIGHT, HIDDEN, INNER, SPLITS)
    step = _fetch(qkv_desc, ring, step, IN_FLIGHT, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _stream_rows(
    mixed_desc, normed_desc, active_desc, next_desc, ring, meeting_ptr, HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr
):
    """The warp that fetches rows, each kind when all programs have written their part of it."""
    gdc_wait()
    step = 0
    step = _fetch(mixed_desc, ring, step, 0, HIDDEN, HIDDEN, SPLITS)
    count = count_when_all_met(meeting_ptr)
    meet(meeting_ptr, NORMED, count)
    step = _fetch(normed_desc, ring, step, 0, INNER, HIDDEN, 1)
    meet(meeting_ptr, UP_DONE, count)
    step = _fetch(active_desc, ring, step, 0, HIDDEN, INNER, SPLITS)
    meet(meeting_ptr, NEXT_NORMED, count)
    step = _fetch(next_desc, ring, step, 0, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _fetch(desc, ring, step, IN_FLIGHT: gl.constexpr, OUT: gl.constexpr, IN: gl.constexpr, SPLITS: gl.constexpr):
    """All boxes of one operand that this program's piece of a product needs, in order.  IN_FLIGHT: 0 for rows, which have no limit."""
    buffers, here, free = ring
    STAGES: gl.constexpr = here.shape[0]
    BOXES: gl.constexpr = buffers.shape[0] // STAGES
    HEIGHT: gl.constexpr = desc.block_type.shape[0]
    COLUMNS: gl.constexpr = desc.block_type.shape[1]
    SPAN: gl.constexpr = IN // SPLITS
    OUTPUTS: gl.constexpr = OUT * SPLITS // 128  # of each of the 128 programs
    IS_WEIGHT: gl.constexpr = IN_FLIGHT > 0
    HEIGHTS: gl.constexpr = OUTPUTS // HEIGHT if IS_WEIGHT else 1
    first_row = gl.program_id(0) // SPLITS * OUTPUTS if IS_WEIGHT else 0
    first = gl.program_id(0) % SPLITS * SPAN
    for at in range(first, first + SPAN, BOXES * COLUMNS):
        slot = step % STAGES
        mbarrier.wait(free.index(slot), step // STAGES & 1 ^ 1)
        if IS_WEIGHT:
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
    gdc_wait()
    count = count_when_all_met(meeting_ptr)
    step = 0
    total, step = product(rings, step, mixed_scale_ptr, rows, HIDDEN, SPLITS, TILES)
    store_part(total, part_ptr, dense_scale_ptr, rows, HIDDEN, SPLITS, SCALED)
    arrive(meeting_ptr, DENSE_DONE, False)
    if gl.program_id(0) < rows:
        normalise(part_ptr, dense_bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, middle_ptr, normed_ptr, normed_scale_ptr,
                   meeting_ptr, DENSE_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    arrive(meeting_ptr, NORMED, True)
    total, step = product(rings, step, normed_scale_ptr, rows, HIDDEN, 1, WHOLE)
    total = finish(total, up_scale_ptr, up_bias_ptr, INNER // 128, SCALED)
    store_active(gelu(total), active_ptr, active_scale_ptr, rows, INNER, SCALED)
    arrive(meeting_ptr, UP_DONE, True)
    total, step = product(rings, step, active_scale_ptr, rows, INNER, SPLITS, TILES)
    store_part(total, part_ptr, down_scale_ptr, rows, HIDDEN, SPLITS, SCALED)
    arrive(meeting_ptr, DOWN_DONE, False)
    if gl.program_id(0) < rows:
        normalise(part_ptr, down_bias_ptr, middle_ptr, next_norm_weight_ptr, next_norm_bias_ptr, next_residual_ptr, next_ptr,
                   next_scale_ptr, meeting_ptr, DOWN_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    arrive(meeting_ptr, NEXT_NORMED, True)
    total, step = product(rings, step, next_scale_ptr, rows, HIDDEN, 1, WHOLE)
    # Attention's programs would settle unevenly if they came earlier, where these leave them little room: a step took up to 10% more.
    LATE: gl.constexpr = SCALED and total.shape[1] > 8
    if not LATE:
        gdc_launch_dependents()
    total = finish(total, qkv_scale_ptr, qkv_bias_ptr, 3 * HIDDEN // 128, SCALED)
    store(total, qkv_ptr, rows, 3 * HIDDEN)
    if LATE:
        gdc_launch_dependents()
