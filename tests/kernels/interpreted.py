"""Runs one kernel's comparison under TRITON_INTERPRET=1: `python interpreted.py CASE`.

float32 and float16 only: the interpreter's bfloat16 products are silently wrong, and so is how it rounds to fp8 (it loses carries and does
not saturate), so here fp8 is only read.  The GPU tests cover both.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace

import torch

from tests.kernels import cases, nucleus_cases, scaled_cases, top_k_cases
from tests.kernels.cases import Device


def main(case: str) -> None:
    for dtype in (torch.float32, torch.float16):
        on = Device("cpu", dtype, seed=zlib.crc32(case.encode()))
        for by_head in (False, True):
            run_case(case, on, by_head)


def run_case(case: str, on: Device, by_head: bool) -> None:
    match case:
        case "layer_norm":
            cases.check_layer_norm(on, 3, 96, by_head)
            cases.check_layer_norm(on, 1, 64, not by_head)
        case "rms_norm":
            cases.check_rms_norm(on, 3, 72, by_head)
        case "activations":
            cases.check_activations(on, 3, 700)
        case "rotary_store":
            cases.check_rotary_store(on, 5, 2, 2, 8, axes=2, by_head=by_head)
            cases.check_rotary_store(on, 5, 4, 2, 32, axes=1, by_head=by_head)
        case "finish_rotary_store":
            cases.check_finish_rotary_store(on, 5, 2, 2, 8, axes=2, by_head=by_head)
            cases.check_finish_rotary_store(on, 5, 4, 2, 32, axes=1, by_head=by_head)
        case "one_row_linear":
            cases.check_one_row_linear(on, 96, 70, with_bias=by_head, gelu=by_head)
            cases.check_one_row_linear(on, 80, 70, with_bias=not by_head, gelu=by_head)
        case "few_rows_linear":
            if on.dtype == torch.float16:
                cases.check_few_rows_linear(on, 3, 128, 70, "none", extras=by_head)
                cases.check_few_rows_linear(on, 17, 64, 64, "int8", extras=by_head)
                for weight_format in ("int8", "int4", "fp8"):
                    cases.check_few_rows_linear(on, 1, 192, 70, weight_format, extras=by_head)
        case "greedy":
            cases.check_greedy(on, 1, 5000 if by_head else 100)
        case "nucleus":
            nucleus_cases.check_nucleus(on, 9_000 if by_head else 70, 0.1 if by_head else 3.0)
            if by_head:
                nucleus_cases.check_nucleus_of_ties(on, 17_000)
            elif on.dtype == torch.float16:  # it multiplies no matrices, so that bfloat16 is right here, too
                nucleus_cases.check_nucleus_of_ties(replace(on, dtype=torch.bfloat16), 17_000)
        case "top_k":
            top_k_cases.check_top_k(on, 9_001 if by_head else 40, 0.1 if by_head else 3.0)
            if by_head:
                top_k_cases.check_top_k_of_ties(on, 17_000)
            elif on.dtype == torch.float16:  # as above
                top_k_cases.check_top_k(replace(on, dtype=torch.bfloat16), 130_528, 2.0)
                top_k_cases.check_top_k_of_ties(replace(on, dtype=torch.bfloat16), 100)
        case "decode_rows":
            cases.check_decode_rows(on, 3, 2 if by_head else 1, 6)
            cases.check_decode_rows(on, 37, 1, 6)
        case "dequantize":
            for weight_format in ("int8", "int4", "fp8"):
                cases.check_dequantize(on, 5, 72, weight_format)
        case "summed_layer_norm":
            cases.check_summed_layer_norm(on, 4, 3, 96, scaled=by_head)
            cases.check_summed_layer_norm(on, 1, 2, 64, scaled=not by_head)
        case "scaled_layer_norm":
            scaled_cases.check_scaled_layer_norm(on, 3, 3, 96)
        case "scaled_few_rows":
            scaled_cases.check_scaled_few_rows(on, 3, 256, 70)
            scaled_cases.check_scaled_few_rows(on, 17, 1024, 128)
        case "scaled_rows":
            scaled_cases.check_scaled_rows(on, 3, 100)
        case "full_heads_decode":
            cases.check_full_heads_decode(on, [1, 17, 70, 0], 2, 8, 2, 16, by_head, splits=(1, 0))
            cases.check_full_heads_decode(on, [33], 1, 128, 2, 16, by_head, splits=(1, 0))
            cases.check_full_heads_decode(on, [1, 17, 0], 2, 128, 2, 16, by_head, splits=(1, 0), rounding="by tile")
            cases.check_full_heads_decode(on, [1, 17, 70, 0], 2, 32, 2, 16, by_head, splits=(2, 3), rounding=cases.level_scale(on))
            cases.check_full_heads_decode(on, [1, 0, 19], 2, 32, 2, 16, by_head, splits=(1, 0), finishes=True)
        case "full_heads_decode_split":
            cases.check_full_heads_decode(on, [1, 0, 130, 260], 2, 24, 1, 16, by_head, splits=(3, 7))
            cases.check_full_heads_decode(on, [300, 0, 130, 1, 260], 1, 32, 2, 16, by_head, splits=(16, 9))
            cases.check_full_heads_decode(on, [300, 0], 1, 32, 2, 16, by_head, splits=(32, 31))
            cases.check_full_heads_decode(on, [300, 70], 1, 32, 2, 16, by_head, splits=(16, 40))
            cases.check_full_heads_decode(on, [300, 0, 13, 1, 20, 200], 1, 32, 2, 16, by_head, splits=(16, 0))  # the short help the long
        case "decode_grouped":
            cases.check_decode(on, [5, 80], 6, 2, 64, 32, by_head, splits=2)
            cases.check_decode(on, [5, 80], 6, 2, 64, 32, by_head, splits=2, cache_dtype=torch.float8_e4m3fn)
        case "dense_prefill":
            cases.check_dense_prefill(on, [3, 70, 1, 70], [3, 0, 0, 69], 2, 2 if by_head else 1, 16)
            cases.check_dense_prefill(on, [131, 64, 131, 66, 67], [131, 63, 65, 64, 5], 1, 1, 24)
            cases.check_dense_prefill(on, [3, 70, 1], [3, 0, 1], 2, 2, 24, rounds=True)
        case "prefill":
            cases.check_prefill(on, [3, 40, 9, 9, 66], [3, 40, 30, 30, 66], [3, 0, 0, 21, 65], 2, 2, 16, by_head)
            cases.check_prefill(on, [71, 67], [79, 75], [78, 37], 1, 1, 24, by_head)  # behind soft tokens: the context ends inside a chunk
            cases.check_prefill(on, [3, 9], [3, 30], [2, 0], 2, 2, 16, by_head, cache_dtype=torch.float8_e4m3fn)
            cases.check_prefill(on, [3, 40], [3, 70], [2, 0], 2, 2, 16, by_head, rounds=True)
        case "prefill_grouped":
            cases.check_prefill(on, [35, 35], [50, 35], [0, 34], 4, 2, 32, by_head)
        case _:
            raise ValueError(case)


if __name__ == "__main__":
    main(sys.argv[1])
