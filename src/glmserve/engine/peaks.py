"""What the device could do and what the model asks of it: the two sides of MBU and MFU."""

from __future__ import annotations

import logging

import msgspec
import torch

from glmserve.models.floor import StepCosts, head_bytes, layer_bytes
from glmserve.models.spec import ModelSpec
from glmserve.protocol.messages import EngineReady
from glmserve.runner.chip import measure_chip_briefly, product_dtype

logger = logging.getLogger(__name__)


def with_peaks(ready: EngineReady) -> EngineReady:
    """`ready` with what its device was measured to do, which takes tens of milliseconds; 0 where it had no memory left for that."""
    device, dtype = torch.device(ready.device), getattr(torch, ready.dtype)
    try:
        with torch.inference_mode():
            chip = measure_chip_briefly(device, product_dtype(ready.quantization, dtype, device))
    except torch.OutOfMemoryError:
        logger.warning("no memory is left to measure the device, so MBU and MFU stay 0; a smaller --gpu-memory-utilization leaves some")
        return ready
    return msgspec.structs.replace(
        ready,
        device_peak_flops_per_second=chip.flops_per_second,
        device_peak_bytes_per_second=chip.bytes_per_second,
        device_uuid=f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None,
    )


def step_costs(spec: ModelSpec, ready: EngineReady) -> StepCosts:
    """Costs by the bytes that matrices and K/V take as they are kept."""
    number_bytes, kv_bytes = (getattr(torch, dtype).itemsize for dtype in (ready.dtype, ready.kv_cache_dtype))
    return StepCosts(spec, layer_bytes(spec, number_bytes), head_bytes(spec, number_bytes), kv_bytes)
