"""What the warpgroups of `layer_stream` do: multiply a piece, finish and store what came of it, normalise a row."""

from __future__ import annotations

from glmserve.kernels.gluon_backend import gl, gluon, mbarrier, warpgroup_mma, warpgroup_mma_wait
from glmserve.kernels.layer_stream_meetings import meet


@gluon.constexpr_function
def accumulators(rows, bits):
    """How [128 outputs, rows] lie in the warpgroups' registers.  bits: of a weight."""
    return gl.NVMMADistributedLayout([3, 0], [8, 1], [16, rows, 256 // bits])


@gluon.constexpr_function
def num_before_held(column_stages, held, ring_stages):
    """How many stages of columns a product takes from the ring before it takes those that it holds.

    While rows were waited for the ring has filled, and only room in it makes weights come again.  A product of few stages waits for weights
    itself, and takes them as they come.
    """
    return ring_stages if column_stages >= 2 * ring_stages + held else 0


@gluon.jit
def hold(rings, step, FIRST: gl.constexpr, HELD: gl.constexpr):
    """The weights of a product's stages FIRST to HELD, in registers: as many more may come while the program waits for its rows."""
    weights = rings[0][0]
    STAGES: gl.constexpr = rings[0][1].shape[0]
    BOXES: gl.constexpr = weights.shape[0] // STAGES
    BITS: gl.constexpr = weights.dtype.primitive_bitwidth
    WEIGHT: gl.constexpr = gl.DotOperandLayout(0, accumulators(rings[1][0].shape[1], BITS), 32 // BITS)
    held = ()
    for ahead in gl.static_range(FIRST, HELD):
        _wait(rings[0], step + ahead)
        for box in gl.static_range(BOXES):
            held += (weights.index((step + ahead) % STAGES * BOXES + box).load(WEIGHT),)  # type: ignore[assignment]  # a tuple of another length
        gl.thread_barrier()
        _free(rings[0], step + ahead)
    return held


@gluon.jit
def product(
    rings, step, held, row_scale_ptr, scale_ptr, bias_ptr, rows,
    OUT: gl.constexpr, IN: gl.constexpr, SPLITS: gl.constexpr, ROW_SCALES: gl.constexpr,
):  # fmt: skip
    """[128 outputs, ROWS] in float32: this program's piece of a product, with the bias unless it is a part.

    ROW_SCALES: 0 for weights and rows without scales, 1 for rows with a scale for each tile of 128 columns, 2 for those with one.
    """
    weights, tiles, tile_scales = rings[0][0], rings[1][0], rings[2]
    STAGES: gl.constexpr = rings[0][1].shape[0]
    BOXES: gl.constexpr = weights.shape[0] // STAGES
    HELD: gl.constexpr = len(held) // BOXES
    ROWS: gl.constexpr = tiles.shape[1]
    SPAN: gl.constexpr = IN // SPLITS
    COLUMN_STAGES: gl.constexpr = SPAN // (BOXES * tiles.shape[2])
    gl.static_assert(HELD <= COLUMN_STAGES)  # else those of the next product were held, too
    FIRST: gl.constexpr = num_before_held(COLUMN_STAGES, HELD, STAGES)
    ACC: gl.constexpr = accumulators(ROWS, weights.dtype.primitive_bitwidth)
    # Scales and bias are asked for before the product: after it, everything would wait for them.
    OUTPUTS: gl.constexpr = OUT * SPLITS // 128
    output = gl.program_id(0) // SPLITS * OUTPUTS + gl.minimum(gl.arange(0, 128, gl.SliceLayout(1, ACC)), OUTPUTS - 1)
    row = gl.arange(0, ROWS, gl.SliceLayout(0, ACC))
    if SPLITS == 1:
        bias = gl.load(bias_ptr + output).to(gl.float32)
    if ROW_SCALES > 0:
        scale = gl.load(scale_ptr + output)
        _wait(rings[1], step)  # then all rows' scales are there, too
        if ROW_SCALES == 1:
            _take_scales(tile_scales, row_scale_ptr + gl.program_id(0) % SPLITS * (SPAN // 128), rows, IN // 128, SPAN // 128)
        else:
            row_scale = gl.load(row_scale_ptr + row, mask=row < rows, other=0.0, cache_modifier=".cg")
    total = gl.zeros([128, ROWS], gl.float32, ACC)
    for at in range(FIRST):
        total = _from_ring(total, rings, step + HELD + at, step + at, HELD + at, ROW_SCALES)
    for at in gl.static_range(HELD):
        row_step = step + FIRST + at
        _wait(rings[1], row_step)
        total = _add_stage(total, held[at * BOXES : (at + 1) * BOXES], rings, row_step, at, ROW_SCALES)
        gl.thread_barrier()
        _free(rings[1], row_step)
    for at in range(FIRST + HELD, COLUMN_STAGES):
        total = _from_ring(total, rings, step + at, step + at, at, ROW_SCALES)
    if ROW_SCALES == 2:
        total *= row_scale[None, :]
    if ROW_SCALES > 0:
        total *= scale[:, None]
    if SPLITS == 1:
        total += bias[:, None]
    return total, step + COLUMN_STAGES


@gluon.jit
def _from_ring(total, rings, weight_step, row_step, at, ROW_SCALES: gl.constexpr):
    """`total` with the stage of columns at place `at`, whose weights and rows come at those steps of their rings."""
    weights = rings[0][0]
    STAGES: gl.constexpr = rings[0][1].shape[0]
    BOXES: gl.constexpr = weights.shape[0] // STAGES
    _wait(rings[0], weight_step)
    _wait(rings[1], row_step)
    here = ()
    for box in gl.static_range(BOXES):
        here += (weights.index(weight_step % STAGES * BOXES + box),)  # type: ignore[assignment]
    total = _add_stage(total, here, rings, row_step, at, ROW_SCALES)
    gl.thread_barrier()  # both warpgroups have done with the stage
    _free(rings[0], weight_step)
    _free(rings[1], row_step)
    return total


@gluon.jit
def _wait(ring, step):
    """Until what comes at this step is there."""
    mbarrier.wait(ring[1].index(step % ring[1].shape[0]), step // ring[1].shape[0] & 1)


@gluon.jit
def _free(ring, step):
    """Its room may be filled again."""
    mbarrier.arrive(ring[2].index(step % ring[2].shape[0]))


@gluon.jit
def _add_stage(total, weights, rings, row_step, at, ROW_SCALES: gl.constexpr):
    """`total` with the boxes of a stage, wherever its weights lie, times its rows."""
    tiles, tile_scales = rings[1][0], rings[2]
    ACC: gl.constexpr = total.type.layout
    BOXES: gl.constexpr = len(weights)
    ROWS: gl.constexpr = tiles.shape[1]
    first = row_step % rings[1][1].shape[0] * BOXES
    if ROW_SCALES == 0:
        for box in gl.static_range(BOXES):
            total = warpgroup_mma(weights[box], tiles.index(first + box).permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(0, deps=[total])
    else:
        scale_of_tile = tile_scales._reinterpret(gl.float32, tile_scales.shape, gl.SwizzledSharedLayout(1, 1, 1, [0]))
        for box in gl.static_range(BOXES):  # products of fp8 are added in few bits, so each tile's are added up in float32
            part = gl.zeros([128, ROWS], gl.float32, ACC)
            part = warpgroup_mma(weights[box], tiles.index(first + box).permute((1, 0)), part, use_acc=False, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            if ROW_SCALES == 1:
                part *= scale_of_tile.index(at * BOXES + box).load(gl.SliceLayout(0, ACC))[None, :]
            total += part
    return total


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
def store_part(total, part_ptr, rows, OUT: gl.constexpr, SPLITS: gl.constexpr):
    """Leave this program's sums to whoever adds up the parts: float32 [SPLITS, rows, OUT]."""
    ACC: gl.constexpr = total.type.layout
    # By a number that the compiler does not know: else it keeps up to 32 addresses in registers from one product's part to the next's.
    zero = gl.inline_asm_elementwise("mov.u32 $0, 0; // $1", "=r,r", [rows], dtype=gl.int32, is_pure=False, pack=1)
    output = zero + gl.program_id(0) // SPLITS * 128 + gl.arange(0, 128, gl.SliceLayout(1, ACC))
    row = gl.arange(0, total.shape[1], gl.SliceLayout(0, ACC))
    at = (gl.program_id(0) % SPLITS * rows + row)[None, :] * OUT + output[:, None]
    gl.store(part_ptr + at, total, mask=(row < rows)[None, :])


@gluon.jit
def gelu(x):
    """tanh GELU, as in kernels/activation.py, but for a reciprocal in place of a division: all programs wait for this one."""
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    divisor = 1.0 + gl.exp(-2.0 * inner)
    return x * gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [divisor], dtype=gl.float32, is_pure=True, pack=1)


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
