"""The activations of the two MLPs: tanh GELU (ChatGLM-6B) and SwiGLU (Llama)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, tl, triton, use_triton

_BLOCK = 1024


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """0.5 x (1 + tanh(0.7978845608 x (1 + 0.044715 x^2))), any shape.  Source: gelu_impl in modeling_chatglm.py."""
    if not use_triton(x):
        return gelu_tanh_torch(x)
    return gelu_tanh_triton(x)


def gelu_tanh_torch(x: torch.Tensor) -> torch.Tensor:
    """The plain twin of `gelu_tanh`."""
    return F.gelu(x, approximate="tanh")


def gelu_tanh_triton(x: torch.Tensor) -> torch.Tensor:
    """The Triton path of `gelu_tanh`; x is contiguous."""
    out = torch.empty_like(x)
    _gelu_tanh_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, out, x.numel(), BLOCK=_BLOCK, **early_start(x))
    return out


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate_up [num_tokens, 2 * intermediate_size] = [gate | up].  Source: LlamaMLP in transformers."""
    if not use_triton(gate_up):
        return silu_and_mul_torch(gate_up)
    return silu_and_mul_triton(gate_up)


def silu_and_mul_torch(gate_up: torch.Tensor) -> torch.Tensor:
    """The plain twin of `silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_and_mul_triton(gate_up: torch.Tensor) -> torch.Tensor:
    """The Triton path of `silu_and_mul`; gate_up is contiguous."""
    num_tokens, width = gate_up.shape
    out = gate_up.new_empty((num_tokens, width // 2))
    _silu_and_mul_kernel[(num_tokens, triton.cdiv(width // 2, _BLOCK))](gate_up, out, width // 2, BLOCK=_BLOCK, **early_start(out))
    return out


@triton.jit(do_not_specialize=["count"])
def _gelu_tanh_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + index, gelu_tanh_of(x).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gelu_tanh_of(x):
    """The activation itself, for kernels that apply it to what they have just computed."""
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    # x * sigmoid(2 inner) is 0.5 x (1 + tanh(inner)) without a tanh, which Triton lacks on some backends.
    return x / (1.0 + tl.exp(-2.0 * inner))


@triton.jit
def short_gelu_tanh_of(x):
    """The same for float32 on a GPU in 7 instructions, where Triton's guards for tiny and huge numbers make it 20: for passes that are
    bound by them.  The relative error of ex2 and rcp is 2^-22 (PTX ISA)."""
    return tl.inline_asm_elementwise(
        """{ .reg .f32 t;
        mul.ftz.f32 t, $1, $1;
        fma.rn.ftz.f32 t, t, 0fBDD2D3E8, 0fC0135761;  // -2 log2(e) 0.79788 (0.044715 x^2 + 1)
        mul.ftz.f32 t, t, $1;
        ex2.approx.ftz.f32 t, t;
        add.ftz.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 t, t;
        mul.ftz.f32 $0, $1, t; }""",
        "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _silu_and_mul_kernel(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    silu = gate / (1.0 + tl.exp(-gate))
    tl.store(out_ptr + row * width + columns, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)
