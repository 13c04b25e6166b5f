"""A model folder before it is served: is it whole, is it a model that can be served, and is there room for it?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from glmserve.models.lfs import FETCH_LFS, is_lfs_pointer
from glmserve.protocol.errors import ModelLoadError
from glmserve.tools.doctor.finding import Finding, NotApplicableError, fail, ok, warn
from glmserve.tools.doctor.gpu import Gpu
from glmserve.tools.doctor.patient import Patient
from glmserve.tools.doctor.weight_files import fault_of

FETCH = "Download it again, whole: `hf download REPO --local-dir FOLDER` goes on where it stopped."
SERVED = (
    "This server knows ChatGLM-6B (model_type chatglm, the first generation) and plain Llama shapes. vLLM serves ChatGLM2, 3 and GLM-4."
)
GPU_SHARE = 0.9  # of the GPU's memory that a server takes by default
WORKSPACE = 2**30  # CUDA itself and the largest step
FEW_CONTEXTS = 2
ROOMY = 1.5  # times the weights: room for K/V too
MIN_FREE_DISK = 2**30
TOKENIZERS = {"chatglm": "ice_text.model", "llama": "tokenizer.json"}


async def config(patient: Patient) -> Finding:
    """config.json is there, is JSON, and describes a model that this server knows."""
    path = patient.files.path / "config.json"
    if is_lfs_pointer(path):
        return fail("config.json is a git-lfs pointer", FETCH_LFS)
    try:
        spec = patient.files.spec()
    except ModelLoadError as error:
        written = patient.files.config  # empty where it cannot be read
        words = str(error).splitlines()[0].replace(f"{path}: ", "").replace(str(path), "config.json")
        return fail(words, SERVED if written else FETCH, model_type=written.get("model_type"))
    return ok(f"{spec.family}, {spec.num_layers} layers, contexts of {spec.max_model_len} tokens", model_type=spec.family)


async def weights(patient: Patient) -> Finding:
    """Every file that the index, or the numbering, promises."""
    files = patient.files.weights
    evidence = {"found": [path.name for path in files.found], "missing": files.missing}
    if files.trouble:
        return fail(files.trouble, FETCH, **evidence)
    if files.missing:
        total = len(files.found) + len(files.missing)
        names = ", ".join(files.missing[:3]) + (" ..." if len(files.missing) > 3 else "")
        return fail(f"{len(files.missing)} of {total} weight files are missing: {names}", FETCH, **evidence)
    if not files.found:
        return fail("no weights: neither model*.safetensors nor pytorch_model*.bin", FETCH, **evidence)
    size = sum(path.stat().st_size for path in files.found)
    return ok(f"{len(files.found)} of {len(files.found)}, {_size(size)}", **evidence, bytes=size)


async def whole_files(patient: Patient) -> Finding:
    """No file was cut off: lengths in the safetensors headers, directories at the end of .bin files."""
    files = patient.files.weights
    if not files.found:
        raise NotApplicableError("there are no weight files")
    faults = {path.name: fault for path in files.found if (fault := fault_of(path, files.tensors))}
    if not faults:
        return ok(f"{len(files.found)} looked at", files=[path.name for path in files.found])
    name, fault = next(iter(faults.items()))
    more = f"; {len(faults) - 1} more" if len(faults) > 1 else ""
    return fail(f"{name} {fault}{more}", f"Remove {' '.join(faults)} and download again.", faults=faults)


async def lfs_pointers(patient: Patient) -> Finding:
    """Small text files that git left in place of the real ones."""
    pointers = sorted(path.name for path in patient.files.path.iterdir() if path.is_file() and is_lfs_pointer(path))
    if not pointers:
        return ok("all files are real", pointers=[])
    names = ", ".join(pointers[:3]) + (" ..." if len(pointers) > 3 else "")
    return fail(f"{len(pointers)} files are git-lfs pointers, not the files: {names}", FETCH_LFS, pointers=pointers)


async def tokenizer(patient: Patient) -> Finding:
    """The file that turns text into token ids is there and can be read."""
    family = patient.files.usable_spec().family
    if (name := TOKENIZERS.get(family)) is None:
        raise NotApplicableError(f"the doctor does not know the tokenizer file of {family}")
    path = patient.files.path / name
    if not path.is_file():
        return fail(f"{name} is missing", FETCH, "Or serve token ids only: --skip-tokenizer-init.", file=name)
    try:
        num_pieces = _num_pieces(path)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        what = "is a git-lfs pointer" if is_lfs_pointer(path) else f"cannot be read ({str(error).splitlines()[0][:60]})"
        return fail(f"{name} {what}", FETCH_LFS if is_lfs_pointer(path) else FETCH, file=name)
    return ok(f"{name}, {num_pieces} pieces", file=name, pieces=num_pieces)


def _num_pieces(path: Path) -> int:
    if path.suffix == ".json":
        return len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(path.read_bytes())
    return int(model.GetPieceSize())


async def dtype(patient: Patient) -> Finding:
    """In which numbers the weights are, and whether that suits this machine."""
    spec, bits, gpu = patient.files.usable_spec(), patient.files.quantization_bits, patient.gpu
    evidence = {"dtype": spec.torch_dtype, "quantization_bits": bits, "gpu": gpu.name if gpu else None}
    if bits:
        remark = f"; {gpu.name} has room for the fp16 model" if gpu and _usable(gpu) > ROOMY * patient.files.half_precision_bytes() else ""
        return ok(f"int{bits} weights{remark}", **evidence)
    if spec.torch_dtype == "float32" and gpu is not None:
        return warn(
            "float32 weights: on a GPU they take twice the memory and time of half precision",
            "Serve with --dtype bfloat16 (or float16 on cards older than Ampere).",
            **evidence,
        )
    return ok(spec.torch_dtype + ("" if gpu else "; computed in float32 on a CPU"), **evidence)


async def memory(patient: Patient) -> Finding:
    """All weights and one full context, beside what is free now."""
    patient.files.usable_spec()
    where, free = _free_memory(patient)
    on_gpu = patient.gpu is not None
    needs = patient.files.needs(on_gpu)
    left = free - needs.weights - (WORKSPACE if on_gpu else 0)
    evidence = {"weights_bytes": needs.weights, "one_context_bytes": needs.one_context, "free_bytes": free}
    figures = f"weights {_size(needs.weights)}, one full context {_size(needs.one_context)}, free on {where} {_size(free)}"
    if left < 0:
        smaller = "free memory there (`nvidia-smi` shows whose it is)" if on_gpu else "stop other programs"
        return fail(
            f"the weights do not fit: {figures}",
            f"A larger GPU, fewer bits (--quantization int8 or int4), or {smaller}.",
            'Never let layers spill to the CPU (device_map="auto"): it fits, and is many times slower.',
            **evidence,
        )
    if left < needs.one_context:
        fits = max(0, int(patient.files.usable_spec().max_model_len * left / needs.one_context)) // 64 * 64
        return fail(f"no room for one full context: {figures}", f"Serve with --max-model-len {fits} or less.", **evidence)
    contexts = left / needs.one_context
    if contexts < FEW_CONTEXTS:
        mend = "Users wait for each other's memory: --kv-cache-dtype fp8 doubles the room, --quantization int8 halves the weights."
        return warn(f"room for {contexts:.1f} full contexts only: {figures}", mend, **evidence)
    return ok(f"{figures}: room for {int(contexts):,} contexts", **evidence)


def _free_memory(patient: Patient) -> tuple[str, int]:
    if patient.gpu is not None and patient.reader is not None:
        used = patient.reader.sample(patient.gpu).memory_used
        return f"GPU {patient.gpu.index}", _usable(patient.gpu) - used
    free = patient.machine.available_memory()
    if free is None:
        raise NotApplicableError("the system does not say how much memory is free (/proc/meminfo)")
    return "this machine", free


def _usable(gpu: Gpu) -> int:
    return int(gpu.memory_bytes * GPU_SHARE)


async def disk(patient: Patient) -> Finding:
    """Room for weights still to come, and for logs and caches."""
    files, free = patient.files.weights, patient.machine.free_disk(patient.files.path)
    here = sum(path.stat().st_size for path in files.found)
    to_come = max(0, (files.total_size or 0) - here) if files.missing else 0
    free_for_caches = patient.machine.free_disk(Path(tempfile.gettempdir()))
    evidence = {"free_bytes": free, "still_to_download_bytes": to_come, "free_temporary_bytes": free_for_caches}
    if to_come > free:
        return fail(
            f"{_size(to_come)} of weights are still to come and {_size(free)} are free in {patient.files.path}",
            "Free some space, or download to another disk.",
            **evidence,
        )
    if min(free, free_for_caches) < MIN_FREE_DISK:
        where = patient.files.path if free < MIN_FREE_DISK else tempfile.gettempdir()
        return warn(f"only {_size(min(free, free_for_caches))} are free in {where}", "Logs and compiled kernels need some.", **evidence)
    return ok(f"{_size(free)} free", **evidence)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
