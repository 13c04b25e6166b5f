"""The kernel of `layer_stream`, in Triton's Gluon for Hopper: see there for what it computes.

A program lives from one attention to the next.  It has three partitions: one warp streams the weights of all four products through shared
memory; one warp fetches the rows of each product as soon as all programs have written them; two warpgroups multiply, finish and normalise.
While the programs wait for each other, weights go on arriving: shared memory and the warpgroups' registers take 6 to 11 us of them ahead,
which is nearly the wait.  Programs meet at counters in global memory, so all of them must run at the same time: there are 128, no more than
multiprocessors.
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
from glmserve.kernels.layer_stream_steps import gelu, hold, normalise, num_before_held, product, store, store_active, store_part


def boxes(tensor: torch.Tensor, rows: int, columns: int) -> Any:
    """A TMA descriptor of a dense [rows, columns] tensor: boxes of so many rows and columns."""
    kind = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float8_e4m3fn: gl.float8e4nv}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], kind)
    return TensorDescriptor(tensor, list(tensor.shape), [tensor.stride(0), 1], [rows, columns], layout)


@gluon.jit(do_not_specialize=["rows", "goes_on"])
def layer_stream_kernel(
    mixed_desc, normed_desc, active_desc, next_desc, dense_desc, up_desc, down_desc, qkv_desc,
    mixed_scale_ptr, normed_scale_ptr, active_scale_ptr, next_scale_ptr, dense_scale_ptr, up_scale_ptr, down_scale_ptr, qkv_scale_ptr,
    dense_bias_ptr, up_bias_ptr, down_bias_ptr, qkv_bias_ptr, norm_weight_ptr, norm_bias_ptr, next_norm_weight_ptr, next_norm_bias_ptr,
    residual_ptr, middle_ptr, normed_ptr, active_ptr, next_residual_ptr, next_ptr, qkv_ptr, part_ptr, meeting_ptr, rows, goes_on,
    alpha, epsilon,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, BOXES: gl.constexpr, STAGES: gl.constexpr,
    ROW_STAGES: gl.constexpr, IN_FLIGHT: gl.constexpr, CALM: gl.constexpr, CALM_AFTER_GELU: gl.constexpr, HELD: gl.constexpr,
    SCALED: gl.constexpr, FETCH_REGISTERS: gl.constexpr,
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
            (_compute, (rings, scales, column_scales, biases, norms, made, meeting_ptr, rows, goes_on, alpha, epsilon, HIDDEN, INNER,
                        SPLITS, HELD, SCALED)),
            (_stream_weights, (dense_desc, up_desc, down_desc, qkv_desc, weight_ring, goes_on, HIDDEN, INNER, SPLITS, IN_FLIGHT, CALM,
                               CALM_AFTER_GELU)),
            (_stream_rows, (mixed_desc, normed_desc, active_desc, next_desc, row_ring, meeting_ptr, goes_on, HIDDEN, INNER, SPLITS, HELD,
                            STAGES)),
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
    dense_desc, up_desc, down_desc, qkv_desc, ring, goes_on,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, IN_FLIGHT: gl.constexpr, CALM: gl.constexpr,
    CALM_AFTER_GELU: gl.constexpr,
):  # fmt: skip
    """The warp that fetches weights.  They depend on nothing, so it begins before the kernel in front has ended.

    No more than IN_FLIGHT stages are on their way: enough for the memory, and few enough for all else that passes it to be quick.  After
    a product that a LayerNorm follows the first CALM stages come one by one: a LayerNorm passes the memory's queue six times.
    """
    step = 0
    step = _fetch(dense_desc, ring, step, IN_FLIGHT, 0, 0, 0, HIDDEN, HIDDEN, SPLITS)
    step = _fetch(up_desc, ring, step, IN_FLIGHT, CALM, 0, 0, INNER, HIDDEN, 1)
    step = _fetch(down_desc, ring, step, IN_FLIGHT, CALM_AFTER_GELU, 0, 0, HIDDEN, INNER, SPLITS)
    if goes_on != 0:
        step = _fetch(qkv_desc, ring, step, IN_FLIGHT, CALM, 0, 0, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _stream_rows(
    mixed_desc, normed_desc, active_desc, next_desc, ring, meeting_ptr, goes_on,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, HELD: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that fetches rows, each kind when all programs have written their part of it, in the order in which `product` takes them."""
    gdc_wait()
    step = 0
    step = _fetch(mixed_desc, ring, step, 0, 0, HELD, STAGES, HIDDEN, HIDDEN, SPLITS)
    count = count_when_all_met(meeting_ptr)
    meet(meeting_ptr, NORMED, count)
    step = _fetch(normed_desc, ring, step, 0, 0, HELD, STAGES, INNER, HIDDEN, 1)
    meet(meeting_ptr, UP_DONE, count)
    step = _fetch(active_desc, ring, step, 0, 0, HELD, STAGES, HIDDEN, INNER, SPLITS)
    if goes_on != 0:
        meet(meeting_ptr, NEXT_NORMED, count)
        step = _fetch(next_desc, ring, step, 0, 0, HELD, STAGES, 3 * HIDDEN, HIDDEN, 1)


@gluon.jit
def _fetch(
    desc, ring, step, IN_FLIGHT: gl.constexpr, CALM: gl.constexpr, HELD: gl.constexpr, WEIGHT_STAGES: gl.constexpr,
    OUT: gl.constexpr, IN: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    """All boxes of one operand that this program's piece of a product needs.

    IN_FLIGHT, CALM: 0 for rows, which have no limit; HELD, WEIGHT_STAGES: 0 for weights, whose columns come in order.
    """
    buffers, here, free = ring
    STAGES: gl.constexpr = here.shape[0]
    BOXES: gl.constexpr = buffers.shape[0] // STAGES
    HEIGHT: gl.constexpr = desc.block_type.shape[0]
    COLUMNS: gl.constexpr = desc.block_type.shape[1]
    SPAN: gl.constexpr = IN // SPLITS
    OUTPUTS: gl.constexpr = OUT * SPLITS // 128  # of each of the 128 programs
    IS_WEIGHT: gl.constexpr = IN_FLIGHT > 0
    HEIGHTS: gl.constexpr = OUTPUTS // HEIGHT if IS_WEIGHT else 1
    COLUMN_STAGES: gl.constexpr = SPAN // (BOXES * COLUMNS)
    FIRST: gl.constexpr = 0 if IS_WEIGHT else num_before_held(COLUMN_STAGES, HELD, WEIGHT_STAGES)
    first_row = gl.program_id(0) // SPLITS * OUTPUTS if IS_WEIGHT else 0
    first = gl.program_id(0) % SPLITS * SPAN
    for turn in range(COLUMN_STAGES):
        place = gl.where(turn < FIRST, turn + HELD, gl.where(turn < FIRST + HELD, turn - FIRST, turn))
        at = first + place * BOXES * COLUMNS
        slot = step % STAGES
        mbarrier.wait(free.index(slot), step // STAGES & 1 ^ 1)
        if IS_WEIGHT:
            before = step - gl.where(turn < CALM, 1, IN_FLIGHT)
            mbarrier.wait(here.index((before + STAGES) % STAGES), before // STAGES & 1, pred=before >= 0)
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
    rings, scales, column_scales, biases, norms, made, meeting_ptr, rows, goes_on, alpha, epsilon,
    HIDDEN: gl.constexpr, INNER: gl.constexpr, SPLITS: gl.constexpr, HELD: gl.constexpr, SCALED: gl.constexpr,
):  # fmt: skip
    """The warpgroups: the layer, step by step.  goes_on: 1 where q|k|v of another layer follow, else 0."""
    mixed_scale_ptr, normed_scale_ptr, active_scale_ptr, next_scale_ptr = scales
    dense_scale_ptr, up_scale_ptr, down_scale_ptr, qkv_scale_ptr = column_scales
    dense_bias_ptr, up_bias_ptr, down_bias_ptr, qkv_bias_ptr = biases
    norm_weight_ptr, norm_bias_ptr, next_norm_weight_ptr, next_norm_bias_ptr = norms
    residual_ptr, middle_ptr, normed_ptr, active_ptr, next_residual_ptr, next_ptr, qkv_ptr, part_ptr = made
    TILES: gl.constexpr = 1 if SCALED else 0  # rows come with a scale for each tile of 128 columns
    WHOLE: gl.constexpr = 2 if SCALED else 0  # with one scale
    step = 0
    held = hold(rings, step, 0, HELD)
    gdc_wait()
    count = count_when_all_met(meeting_ptr)
    total, step = product(rings, step, held, mixed_scale_ptr, dense_scale_ptr, dense_bias_ptr, rows, HIDDEN, HIDDEN, SPLITS, TILES)
    store_part(total, part_ptr, rows, HIDDEN, SPLITS)
    arrive(meeting_ptr, DENSE_DONE, False)
    held = hold(rings, step, 0, HELD // 2)  # else weights would stop coming to those that normalise; all are too many registers beside it
    if gl.program_id(0) < rows:
        normalise(part_ptr, dense_bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, middle_ptr, normed_ptr, normed_scale_ptr,
                   meeting_ptr, DENSE_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    arrive(meeting_ptr, NORMED, True)
    held = held + hold(rings, step, HELD // 2, HELD)
    total, step = product(rings, step, held, normed_scale_ptr, up_scale_ptr, up_bias_ptr, rows, INNER, HIDDEN, 1, WHOLE)
    store_active(gelu(total), active_ptr, active_scale_ptr, rows, INNER, SCALED)
    arrive(meeting_ptr, UP_DONE, True)
    held = hold(rings, step, 0, HELD)
    total, step = product(rings, step, held, active_scale_ptr, down_scale_ptr, down_bias_ptr, rows, HIDDEN, INNER, SPLITS, TILES)
    store_part(total, part_ptr, rows, HIDDEN, SPLITS)
    arrive(meeting_ptr, DOWN_DONE, False)
    ends = (part_ptr, down_bias_ptr, middle_ptr, next_norm_weight_ptr, next_norm_bias_ptr, next_residual_ptr, next_ptr, next_scale_ptr)
    if goes_on != 0:
        held = hold(rings, step, 0, HELD // 2)
        _normalise_end(ends, meeting_ptr, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)
        held = held + hold(rings, step, HELD // 2, HELD)
        total, step = product(rings, step, held, next_scale_ptr, qkv_scale_ptr, qkv_bias_ptr, rows, 3 * HIDDEN, HIDDEN, 1, WHOLE)
        # Attention's programs would settle unevenly if they came earlier, where these leave them little room: a step took up to 10% more.
        LATE: gl.constexpr = SCALED and total.shape[1] > 8
        if not LATE:
            gdc_launch_dependents()
        store(total, qkv_ptr, rows, 3 * HIDDEN)
        if LATE:
            gdc_launch_dependents()
    else:
        gdc_launch_dependents()
        _normalise_end(ends, meeting_ptr, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)


@gluon.jit
def _normalise_end(ends, meeting_ptr, count, rows, alpha, epsilon, HIDDEN: gl.constexpr, SPLITS: gl.constexpr, SCALED: gl.constexpr):
    """The LayerNorm after the layer, and telling of it."""
    part_ptr, product_bias_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, level_ptr, level_scale_ptr = ends
    if gl.program_id(0) < rows:
        normalise(part_ptr, product_bias_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, level_ptr, level_scale_ptr,
                   meeting_ptr, DOWN_DONE, count, rows, alpha, epsilon, HIDDEN, SPLITS, SCALED)  # fmt: skip
    arrive(meeting_ptr, NEXT_NORMED, True)
