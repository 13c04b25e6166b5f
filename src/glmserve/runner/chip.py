"""What a device can do, measured: the rate of a large copy and of a large matrix product."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glmserve.kernels.scaled_rows import ScaledRows, scaled_product
from glmserve.models.floor import Chip

_LEAST_COPY_BYTES = 2**26


def product_dtype(quantization: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a model's matrix products multiply where arithmetic counts: fp8 on a GPU if its weights are fp8, else the model's dtype."""
    return torch.float8_e4m3fn if quantization == "fp8" and device.type == "cuda" else dtype


def measure_chip(device: torch.device, dtype: torch.dtype) -> Chip:
    """At leisure, for a benchmark: what the device holds out over a second or so."""
    if device.type == "cuda":
        return _measure(device, dtype, min(2**31, torch.cuda.mem_get_info(device)[0] // 4), 8192, 10)
    return _measure(device, dtype, 2**28, 1024, 10)


@cache  # an engine that is made again in the same process finds the same chip
def measure_chip_briefly(device: torch.device, dtype: torch.dtype) -> Chip:
    """In tens of milliseconds and a gigabyte at most, for an engine that starts."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        chip = _measure(device, dtype, max(_LEAST_COPY_BYTES, min(2**29, free // 16)), 8192 if free > 2**33 else 4096, 5)
        torch.cuda.empty_cache()
        return chip
    return _measure(device, dtype, 2**26, 512, 5)


def _measure(device: torch.device, dtype: torch.dtype, copy_bytes: int, width: int, repeats: int) -> Chip:
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device, repeats)
    product = seconds_of(_product(device, dtype, width), device, repeats)
    return Chip(device_name(device), 2 * source.nbytes / copy, 2 * width**3 / product)


def _product(device: torch.device, dtype: torch.dtype, width: int) -> Callable[[], torch.Tensor]:
    """A matrix product of random numbers, as it is made for that dtype."""
    if dtype != torch.float8_e4m3fn:
        a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
        return lambda: a @ b
    rows, weight = (torch.randn(width, width, device=device, dtype=torch.bfloat16).to(dtype) for _ in range(2))
    scaled = ScaledRows(rows, torch.ones(width, device=device))
    return lambda: scaled_product(scaled, weight)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of one call: on a GPU the mean of a row of them, which is what it holds out."""
    for _ in range(2):
        work()
    if device.type != "cuda":
        return min(_host_seconds(work) for _ in range(repeats))  # other programs use the cores too
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000 / repeats


def _host_seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
