"""How the programs of `layer_stream` wait for each other: at counters in global memory, one a meeting, which nobody sets back."""

from __future__ import annotations

from glmserve.kernels.gluon_backend import HAS_GLUON, gl, gluon

NUM_COUNTERS = 5 * 32  # each has a cache line of its own

if HAS_GLUON:
    DENSE_DONE, NORMED, UP_DONE, DOWN_DONE, NEXT_NORMED = map(gl.constexpr, range(5))  # what programs meet for
    LINE = gl.constexpr(32)
else:
    DENSE_DONE = NORMED = UP_DONE = DOWN_DONE = NEXT_NORMED = LINE = None


@gluon.jit
def count_when_all_met(meeting_ptr):
    """What each meeting's counter shows when all programs of this launch have come.

    The counters are never set back and may overflow, since the number of programs is a power of two.  Between launches all show the same;
    the last meeting's, to which this program has not come yet, still tells what that was.
    """
    return (_read(meeting_ptr + NEXT_NORMED * LINE) & -gl.num_programs(0)) + gl.num_programs(0)


@gluon.jit
def arrive(meeting_ptr, MEETING: gl.constexpr, BY_TMA: gl.constexpr):
    """Tell the others that all threads of this partition have stored what they will read, maybe by TMA."""
    if BY_TMA:
        _order_with_tma()
    gl.thread_barrier()
    gl.atomic_add(meeting_ptr + MEETING * LINE, 1, sem="release", scope="gpu")


@gluon.jit
def meet(meeting_ptr, MEETING: gl.constexpr, count):
    """Until all programs have come."""
    while _read(meeting_ptr + MEETING * LINE) - count < 0:
        pass
    _order_with_tma()


@gluon.jit
def _read(counter_ptr):
    address = counter_ptr.to(gl.int64)
    return gl.inline_asm_elementwise("ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [address], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _order_with_tma():
    """What was stored or seen before comes before what TMA reads after (PTX, proxies)."""
    gl.inline_asm_elementwise("fence.proxy.async; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
