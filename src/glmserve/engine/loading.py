"""From settings to an engine that can step: model, K/V pool, scheduler.  Says where each part lies, or how much memory is missing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glmserve.config import EngineConfig
from glmserve.engine.formats import kv_cache_dtype, with_formats
from glmserve.engine.memory import check_room_for_weights, first_qkv_bytes, gib, num_kv_blocks, with_first_qkv
from glmserve.kernels.backend import choose_kernels
from glmserve.models.catalog import read_spec
from glmserve.models.floor import head_values, layer_values
from glmserve.models.registry import Model, model_class
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError, NotEnoughMemoryError
from glmserve.protocol.messages import EngineReady
from glmserve.protocol.weight_format import WeightFormat
from glmserve.runner.kv_pool import KVPool
from glmserve.runner.loader import Progress, build_model, fill_with_noise, kept_on, load_weights, pack_for_cpu, parameter_bytes
from glmserve.runner.model_runner import ModelRunner
from glmserve.runner.soft_tokens import with_checkpoint, write_soft_tokens
from glmserve.scheduler.batching import batching_of
from glmserve.scheduler.block_pool import BlockPool
from glmserve.scheduler.kv_cache_manager import KVCacheManager
from glmserve.scheduler.scheduler import Scheduler

_SMALL_MODEL = 100e6  # numbers in its matrices
_WARM_UP_SIZES = (1, 2, 4, 8, 16, 32, 64, 80, 128, 144)  # the likeliest, and one of each kind of kernels: compiling takes a second
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedEngine:
    """What EngineCore steps."""

    spec: ModelSpec
    ready: EngineReady
    scheduler: Scheduler
    runner: ModelRunner


def load_engine(config: EngineConfig, progress: Progress) -> LoadedEngine:
    """Load everything.  `config.model` is a folder here.  Raises ModelLoadError, NotEnoughMemoryError among them."""
    try:
        with torch.inference_mode():
            return _load(config, progress)
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemoryError(
            f"the GPU ran out of memory while loading: {str(error).splitlines()[0]} Free memory on it, or serve a smaller context "
            "(--max-model-len) or batch (--max-num-seqs, --max-num-batched-tokens). Nothing is ever moved to the CPU.",
            missing_bytes=0,
        ) from error


def _load(config: EngineConfig, progress: Progress) -> LoadedEngine:
    clock = _PhaseClock()
    choose_kernels(plain=config.kernels == "plain")
    folder = Path(config.model)
    spec = _limit_length(read_spec(folder), config.max_model_len, folder)
    device = device_of(config.device)
    _set_threads(config, spec, device)
    dtype = _dtype(config.dtype, spec, device)
    kv_dtype = kv_cache_dtype(config, dtype, device)
    ptuning_checkpoint = Path(config.ptuning_checkpoint) if config.ptuning_checkpoint else None
    if ptuning_checkpoint:
        spec = with_checkpoint(spec, ptuning_checkpoint)
    spec = with_formats(config, spec, device)
    max_batched_tokens = _max_batched_tokens(config, spec, device)
    make_model = model_class(folder)
    spec = with_first_qkv(config, spec, dtype, device)
    check_room_for_weights(parameter_bytes(make_model, spec, device, dtype) + first_qkv_bytes(spec, dtype), config, device)
    progress(f"allocating {folder.name} on {device} as {dtype}")
    model = build_model(make_model, kept_on(device, spec), device, dtype)
    clock.phase("allocate")
    if config.load_format == "dummy":
        fill_with_noise(model, spec, config.seed)
    else:
        load_weights(model, spec, folder, progress, ptuning_checkpoint)
    model.finish_loading()
    soft_tokens = model.take_soft_tokens()
    rounded_to, spec = spec.layer_format, kept_on(device, spec)  # from here on the formats of `spec` tell of memory
    weights = _placement_of_weights(model, spec, device)
    pack_for_cpu(model)
    clock.phase("load_weights")
    num_blocks = num_kv_blocks(config, model, spec, kv_dtype, device, max_batched_tokens, progress)
    pool = KVPool(spec, num_blocks, config.block_size, kv_dtype, device)
    clock.phase("size_kv_cache")
    runner = ModelRunner(model, spec, pool, device, config.max_num_seqs, spec.max_model_len, use_graphs=not config.enforce_eager)
    if runner.graphs is not None:
        progress("capturing graphs")
    runner.warm_up(sorted({min(size, config.max_num_seqs) for size in _WARM_UP_SIZES}), dtype)
    clock.phase("capture_graphs")
    scheduler = _scheduler(config, spec, pool, device, max_batched_tokens)
    if soft_tokens is not None:
        write_soft_tokens(soft_tokens, pool, scheduler.kv_cache.soft_blocks)
    return LoadedEngine(spec, _describe(config, spec, weights, pool, dtype, rounded_to, clock.seconds), scheduler, runner)


def _set_threads(config: EngineConfig, spec: ModelSpec, device: torch.device) -> None:
    """The threads asked for; otherwise one for a small model on a CPU, and torch's default for all else.

    A small model's products end in microseconds.  Threads that share them win little on an idle machine, and wait for each other, running,
    on one that is busy (benchmarks/RESULTS.md, "the poem model").
    """
    small = device.type == "cpu" and layer_values(spec) + head_values(spec) < _SMALL_MODEL
    if threads := config.num_threads or (1 if small else None):
        torch.set_num_threads(threads)


def _limit_length(spec: ModelSpec, max_model_len: int | None, folder: Path) -> ModelSpec:
    if max_model_len is None:
        return spec
    if max_model_len > spec.max_model_len:
        raise ModelLoadError(
            f"--max-model-len {max_model_len} exceeds the {spec.max_model_len} tokens that {folder / 'config.json'} allows."
        )
    return replace(spec, max_model_len=max_model_len)


def device_of(name: str) -> torch.device:
    """Where `--device` puts the model.  Raises ModelLoadError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            "--device cuda, but torch sees no GPU. Check that `nvidia-smi` lists one and that torch is a CUDA build "
            f"(this one is {torch.__version__}), or use --device cpu."
        )
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def _dtype(name: str, spec: ModelSpec, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = spec.torch_dtype if device.type == "cuda" else "float32"  # half precision is slower than float32 on most CPUs
    if name not in _DTYPES:
        raise ModelLoadError(f"config.json has torch_dtype {name!r}; choose --dtype {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _max_batched_tokens(config: EngineConfig, spec: ModelSpec, device: torch.device) -> int:
    tokens = config.max_num_batched_tokens or (8192 if device.type == "cuda" else 2048)
    # A prefix model's context is computed whole, so the longest one must fit into a step.
    return max(tokens, spec.max_model_len) if spec.attention == "prefix" else tokens


def _scheduler(config: EngineConfig, spec: ModelSpec, pool: KVPool, device: torch.device, max_batched_tokens: int) -> Scheduler:
    run_length = 1 if device.type == "cuda" else max(1, spec.max_model_len // config.block_size)
    kv_cache = KVCacheManager(
        BlockPool(pool.num_blocks, run_length),
        config.block_size,
        spec.attention == "prefix",
        config.enable_prefix_caching,
        spec.num_soft_tokens,
    )
    batching = batching_of(config.batching, config.batching_window, config.max_num_seqs)
    return Scheduler(spec, kv_cache, config.max_num_seqs, max_batched_tokens, config.aging_seconds, batching=batching)


def _placement_of_weights(model: Model, spec: ModelSpec, device: torch.device) -> tuple[int, list[list[str]]]:
    """Bytes of all weights, and rows of (part, device, size) for people."""
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}  # a shared tensor appears once
    layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    tied = "lm_head.weight" not in sizes
    table = sizes.pop("first_qkv", 0)
    total = sum(sizes.values())
    ends = "embedding and output layer" + (" (one tensor)" if tied else "" if spec.head_format == "none" else f" in {spec.head_format}")
    kept = f"{spec.num_layers} layers" + ("" if spec.layer_format == "none" else f" in {spec.layer_format}")
    rows = [[ends, str(device), gib(total - layers)], [kept, str(device), gib(layers)]]
    if table:
        rows.append(["the first layer's q, k and v of each token", str(device), gib(table)])
    return total + table, rows


def _describe(
    config: EngineConfig,
    spec: ModelSpec,
    weights: tuple[int, list[list[str]]],
    pool: KVPool,
    dtype: torch.dtype,
    rounded_to: WeightFormat,
    seconds: dict[str, float],
) -> EngineReady:
    device = pool.blocks.device
    weights_bytes, placement = weights
    kv_dtype = _name_of(pool.blocks.dtype)
    pool_row = [f"K/V pool, {pool.num_blocks - 1} blocks of {pool.block_size} tokens in {kv_dtype}", str(device), gib(pool.nbytes)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return EngineReady(
        model=config.model,
        device=str(device),
        device_name=name,
        dtype=_name_of(dtype),
        max_model_len=spec.max_model_len,
        max_num_seqs=config.max_num_seqs,
        num_kv_blocks=pool.num_blocks - 1,
        block_size=pool.block_size,
        weights_bytes=weights_bytes,
        kv_cache_bytes=pool.nbytes,
        placement=[*placement, pool_row],
        load_seconds=seconds,
        quantization=rounded_to,
        kv_cache_dtype=kv_dtype,
    )


def _name_of(dtype: torch.dtype) -> str:
    """As settings and config.json spell it: "float16"."""
    return str(dtype).removeprefix("torch.")


class _PhaseClock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def phase(self, name: str) -> None:
        """The phase that ends now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
