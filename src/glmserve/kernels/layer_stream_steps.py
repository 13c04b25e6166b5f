"""What the warpgroups of `layer_stream` do: multiply a piece, finish and store what came of it, normalise a row."""

from __future__ import annotations

from glmserve.kernels.gluon_backend import gl, gluon, mbarrier, warpgroup_mma, warpgroup_mma_wait
from glmserve.kernels.layer_stream_meetings import meet


@gluon.jit
def product(rings, step, row_scale_ptr, rows, IN: gl.constexpr, SPLITS: gl.constexpr, ROW_SCALES: gl.constexpr):
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
def store_part(total, part_ptr, scale_ptr, rows, OUT: gl.constexpr, SPLITS: gl.constexpr, SCALED: gl.constexpr):
    """Leave this program's sums to whoever adds up the parts: float32 [SPLITS, rows, OUT]."""
    ACC: gl.constexpr = total.type.layout
    output = gl.program_id(0) // SPLITS * 128 + gl.arange(0, 128, gl.SliceLayout(1, ACC))
    row = gl.arange(0, total.shape[1], gl.SliceLayout(0, ACC))
    if SCALED:
        total *= gl.load(scale_ptr + output)[:, None]
    at = (gl.program_id(0) % SPLITS * rows + row)[None, :] * OUT + output[:, None]
    gl.store(part_ptr + at, total, mask=(row < rows)[None, :])


@gluon.jit
def finish(total, scale_ptr, bias_ptr, OUTPUTS: gl.constexpr, SCALED: gl.constexpr):
    """A whole sum with its columns' scale and bias; beyond the program's OUTPUTS anything."""
    lane = gl.arange(0, 128, gl.SliceLayout(1, total.type.layout))
    output = gl.program_id(0) * OUTPUTS + gl.minimum(lane, OUTPUTS - 1)
    if SCALED:
        total *= gl.load(scale_ptr + output)[:, None]
    return total + gl.load(bias_ptr + output).to(gl.float32)[:, None]


@gluon.jit
def gelu(x):
    """tanh GELU, as in kernels/activation.py."""
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    return x / (1.0 + gl.exp(-2.0 * inner))


@gluon.jit
def store_active(active, active_ptr, active_scale_ptr, rows, INNER: gl.constexpr, SCALED: gl.constexpr):
    """The program's 128 numbers of each row, rounded: to fp8 with a scale of their own."""
    if SCALED:
        row = gl.arange(0, active.shape[1], gl.SliceLayout(0, active.type.layout))
        scale = gl.maximum(gl.max(gl.abs(active), 0) / 448.0, 1e-12)
        gl.store(active_scale_ptr + row * (INNER // 128) + gl.program_id(0), scale, mask=row < rows)
        active = gl.minimum(gl.maximum(active / scale[None, :], -448.0), 448.0)  # the quotient may be a rounding error larger
    store(active, active_ptr, rows, INNER)


@gluon.jit
def store(total, out_ptr, rows, OUT: gl.constexpr):
    OUTPUTS: gl.constexpr = OUT // 128
    STORED: gl.constexpr = gl.BlockedLayout([16, 1], [8, 4], [1, 8], [0, 1])
    stored = gl.convert_layout(total.to(out_ptr.dtype.element_ty), STORED)
    lane = gl.arange(0, 128, gl.SliceLayout(1, STORED))
    row = gl.arange(0, total.shape[1], gl.SliceLayout(0, STORED))
    at = row[None, :] * OUT + (gl.program_id(0) * OUTPUTS + lane)[:, None]
    gl.store(out_ptr + at, stored, mask=(lane < OUTPUTS)[:, None] & (row < rows)[None, :])


@gluon.jit
def normalise(
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
    meet(meeting_ptr, MEETING, count)
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
