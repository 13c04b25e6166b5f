"""Does the GPU do the work, at the speed it could?  NVML where the server is on this machine, the server's own count where it has one."""

from __future__ import annotations

import re
from statistics import fmean

from glmserve.observe.readings import Window
from glmserve.tools.doctor.finding import Finding, NotApplicableError, fail, ok, warn
from glmserve.tools.doctor.gpu import GpuSample, mean_utilization
from glmserve.tools.doctor.patient import Patient
from glmserve.tools.doctor.service import SPEAK_OPENAI, Service

HOST_CAUSES = ("idle_scheduling", "idle_tokenizing", "idle_http")
SLOWED_BY_HEAT = {"hw_slowdown", "hw_thermal", "sw_thermal", "hw_power_brake"}
COPYING = 1e9  # bytes a second over PCIe: token ids and logits are a thousandth of it
QUANTIZED = re.compile(r"int[48]|[wq][48]|awq|gptq|ggml", re.IGNORECASE)


async def offload(patient: Patient) -> Finding:
    """Memory full while compute idles, layers that are copied in or computed on the CPU: all while messages never end."""
    gpu, samples = patient.need_gpu(), await patient.gpu_at_work()
    utilization = mean_utilization(samples)
    if utilization is None:
        raise NotApplicableError("NVML does not tell this GPU's utilization")
    memory = max(sample.memory_used for sample in samples) / gpu.memory_bytes
    copied = _mean([sample.pcie_received for sample in samples])
    evidence = {"gpu": gpu.index, "utilization": utilization, "memory_share": memory, "pcie_received_bytes_per_second": copied}
    figures = f"GPU {gpu.index} at {utilization:.0%} with {memory:.0%} of its memory in use"
    mend = (
        'Load without device_map="auto" and without offload folder; if it does not fit, take fewer bits or a larger GPU.',
        "glmserve serve MODEL puts every layer on the GPU or says how many bytes are missing.",
    )
    if utilization < 0.05 and memory < 0.1:
        return fail(f"the model is not on the GPU: {figures} while it answers", *mend, **evidence)
    if utilization < 0.2 and memory > 0.9:
        return fail(f"memory full, compute idle: {figures} while it answers", *mend, **evidence)
    if copied is not None and copied > COPYING and utilization < 0.6:
        return fail(f"layers are copied to the GPU again and again: {copied / 1e9:.1f} GB/s over PCIe, {figures}", *mend, **evidence)
    return ok(figures, **evidence)


async def host_bound(patient: Patient) -> Finding:
    """How much of the time the GPU waits for the host while messages never end."""
    service, busy = patient.service, await patient.tried.busy()
    counted = busy.window.increases_by("gpu_time_seconds_total", "activity") if busy.window else {}
    if busy.window and sum(counted.values()) > 0:
        return _by_cause(counted, busy.window.increase("launch_bound_seconds_total") or 0.0, service)
    utilization = mean_utilization(await patient.gpu_at_work())
    if utilization is None:
        raise NotApplicableError("NVML does not tell this GPU's utilization")
    words = f"GPU at {utilization:.0%} while messages never end"
    if utilization >= 0.7:
        return ok(words, utilization=utilization)
    return (fail if utilization < 0.5 else warn)(
        f"the GPU waits for the host: {words}",
        "Python launches each small step: continuous batching, CUDA graphs and a process of its own for the engine mend it.",
        f"glmserve serve MODEL --port {service.port} has all three; `glmserve bench ladder MODEL` shows what each brings.",
        utilization=utilization,
    )


def _by_cause(counted: dict[str, float], launch_bound: float, service: Service) -> Finding:
    total = sum(seconds for activity, seconds in counted.items() if activity != "idle_no_work")
    waiting = {cause: counted.get(cause, 0.0) for cause in HOST_CAUSES}
    if total <= 0:
        raise NotApplicableError("its engine had no work while messages were sent")
    share = sum(waiting.values()) / total
    evidence = {"waits_for_host_share": share} | {f"{activity}_seconds": seconds for activity, seconds in counted.items()}
    work = sum(seconds for activity, seconds in counted.items() if not activity.startswith("idle_"))
    evidence["launch_bound_share"] = launch_bound / work if work else 0.0
    if share < 0.25 and evidence["launch_bound_share"] >= 0.5:
        return warn(
            f"in {evidence['launch_bound_share']:.0%} of its work the GPU waits between kernels: the host launches them no faster",
            "Start it without --enforce-eager and without --kernels plain: a step is then a CUDA graph, launched at once.",
            **evidence,
        )
    if share < 0.25:
        return ok(f"the device waits for the host {share:.0%} of the time there is work", **evidence)
    worst = max(waiting, key=lambda cause: waiting[cause])
    mend = {
        "idle_scheduling": "Is another program using the cores (top)? No --enforce-eager; fewer, faster cores beat many slow ones.",
        "idle_tokenizing": "Long prompts are tokenized on too few cores: give the server more of them.",
        "idle_http": "The HTTP process is out of CPU: more cores, or a larger --stream-interval so that tokens travel together.",
    }[worst]
    summary = f"the device waits for the host {share:.0%} of the time there is work, most for {worst.removeprefix('idle_')}"
    return (fail if share >= 0.5 else warn)(summary, mend, f"glmserve monitor {service.url} shows it live.", **evidence)


async def decode_speed(patient: Patient) -> Finding:
    """Tokens a second beside what the memory of this chip allows: every token reads all weights once."""
    busy = await patient.tried.busy()
    rate = await patient.tried.tokens_per_second()
    share = _counted_share(busy.window)
    if share is None:
        share = await _estimated_share(patient, rate)
    evidence = {"tokens_per_second_alone": rate, "memory_bandwidth_share": share}
    words = f"{rate:.0f} tokens/s alone; {share:.0%} of the memory's speed is used"
    if share >= 0.15 or patient.gpu is None:  # a CPU has other work besides, and caches that hold small models
        return ok(words, **evidence)
    name = patient.service.model
    mend = "Each token could come several times sooner: host-bound steps, float32, or slow kernels (see the other checks)."
    if QUANTIZED.search(name):
        mend = "The quantized kernels unpack weights in every step: serve the fp16 model if it fits, or the same files with glmserve serve."
    return warn(f"slow steps: {words}", mend, **evidence)


def _counted_share(window: Window | None) -> float | None:
    """What a server counts itself; None where it does not."""
    if window is None:
        return None
    peak, read = window.after.total("device_peak_bytes_per_second"), window.rate("estimated_read_bytes_per_gpu_total")
    return read / peak if peak and read else None


async def _estimated_share(patient: Patient, rate: float) -> float:
    """A server that takes memory as it needs it holds little but weights, and reads them for each token."""
    gpu, samples = patient.need_gpu(), await patient.gpu_at_work()
    if patient.service.kind in SPEAK_OPENAI:
        raise NotApplicableError("it counts no bytes read, and may hold more than weights in its memory")
    if gpu.peak_bytes_per_second is None:
        raise NotApplicableError("NVML does not tell this GPU's memory speed")
    return samples[-1].memory_used * rate / gpu.peak_bytes_per_second


async def served_dtype(patient: Patient) -> Finding:
    """In which numbers a server computes, where it says so."""
    readings = await patient.service.metrics(patient.tried.http)
    series = readings.series("cache_config_info") if readings else {}
    told = next((dict(labels)["dtype"] for labels in series if "dtype" in dict(labels)), None)
    if told is None:
        raise NotApplicableError("it does not say in which numbers it computes")
    assert readings is not None
    has_gpu = bool(readings.series("nvml_memory_total_bytes")) or (patient.is_here and patient.gpu is not None)
    if told.endswith("float32") and has_gpu:
        return fail(
            "float32 on a GPU: twice the memory and a fraction of the speed of half precision",
            "Start it with --dtype float16 or --dtype bfloat16.",
            dtype=told,
        )
    return ok(told, dtype=told)


async def throttling(patient: Patient) -> Finding:
    """Clocks that heat or a power limit hold down."""
    gpu, samples = patient.need_gpu(), await patient.gpu_at_work()
    seen = {reason: sum(reason in sample.throttle for sample in samples) / len(samples) for reason in _reasons(samples)}
    clock, hottest = _mean([sample.sm_clock for sample in samples]), max((sample.temperature or 0 for sample in samples), default=0)
    evidence = {"reasons": seen, "sm_clock_mhz": clock, "max_sm_clock_mhz": gpu.max_sm_clock, "temperature_celsius": hottest or None}
    if heat := sorted(SLOWED_BY_HEAT & set(seen)):
        return fail(
            f"the GPU is slowed down: {', '.join(heat)} in {max(seen[reason] for reason in heat):.0%} of the samples"
            + (f", {hottest} °C" if hottest else ""),
            "See to cooling and power: fans, dust, air flow, power cables. `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER` tells more.",
            **evidence,
        )
    if seen.get("sw_power_cap", 0) > 0.5 and clock and gpu.max_sm_clock and clock < 0.8 * gpu.max_sm_clock:
        return warn(
            f"a power limit holds the clock at {clock:.0f} of {gpu.max_sm_clock} MHz",
            "`nvidia-smi -q -d POWER` shows the limit; `nvidia-smi -pl WATTS` raises it where the card allows.",
            **evidence,
        )
    return ok(f"{clock:.0f} MHz" + (f", {hottest} °C" if hottest else "") if clock else "no reason to throttle", **evidence)


async def pcie(patient: Patient) -> Finding:
    """A card in a slot with too few lanes, or a link that came up slow."""
    gpu, samples = patient.need_gpu(), await patient.gpu_at_work()
    width = max((sample.pcie_width or 0 for sample in samples), default=0)
    generation = max((sample.pcie_generation or 0 for sample in samples), default=0)
    if not width or not gpu.max_pcie_width:
        raise NotApplicableError("NVML does not tell the width of the PCIe link")
    evidence = {"width": width, "max_width": gpu.max_pcie_width, "generation": generation, "max_generation": gpu.max_pcie_generation}
    mend = "Loading, and several GPUs together, suffer; answers of one GPU hardly. Seat the card in a full slot; look at risers and BIOS."
    if width < gpu.max_pcie_width:
        return warn(f"PCIe x{width}, the card could x{gpu.max_pcie_width}", mend, **evidence)
    is_working = patient.trials is not None  # an idle link sleeps at a lower generation
    if is_working and gpu.max_pcie_generation and 0 < generation < gpu.max_pcie_generation:
        return warn(f"PCIe generation {generation}, the card could {gpu.max_pcie_generation}", mend, **evidence)
    return ok(f"PCIe x{width}" + (f", generation {generation}" if generation else ""), **evidence)


def _reasons(samples: list[GpuSample]) -> set[str]:
    return set().union(*(sample.throttle for sample in samples))


def _mean(values: list[float | None] | list[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
