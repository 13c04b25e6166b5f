"""All settings, frozen, read once: flags over environment (GLMSERVE_*) over a YAML file over the defaults here.

Flag names are vLLM's where vLLM has the flag.  `description` is the help text of the flag, so a setting is spelled once.
Nothing else in the project reads the environment or a settings file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EngineConfig(BaseModel):
    """What the GPU wing needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field("demo", description="Model folder, or `demo` for the small built-in model.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the whole model lies; never split.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Numbers of weights and activations. auto: the checkpoint's own on a GPU, float32 on a CPU."
    )
    max_model_len: int | None = Field(None, ge=2, description="Longest prompt plus answer in tokens. Default: the model's.")
    max_num_seqs: int = Field(256, ge=1, le=4096, description="Most sequences in one step.")
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Most prompt tokens in one step. Default: 8192 on a GPU, 2048 on a CPU."
    )
    gpu_memory_utilization: float = Field(0.90, gt=0.0, le=1.0, description="Share of the GPU's memory to use.")
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, description="Size of the K/V pool. Default: what the GPU has left; on a CPU 1 GiB or 32 full contexts."
    )
    block_size: int = Field(16, description="Tokens in one K/V block.")
    num_kv_blocks: int | None = Field(None, ge=2, description="Exact number of K/V blocks, for tests.")
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights of the config's shape.")
    skip_tokenizer_init: bool = Field(False, description="Serve token ids only; needs no tokenizer files.")
    enable_prefix_caching: bool = Field(True, description="Reuse K/V of identical contexts and shared prefixes.")
    enforce_eager: bool = Field(False, description="No CUDA graphs.")
    seed: int = Field(0, description="Seed of dummy weights and of requests that give none.")
    aging_seconds: float = Field(
        5.0, gt=0, description="A waiting request gains one priority class each time this long passes."
    )
    num_threads: int | None = Field(None, ge=1, description="CPU threads of the engine. Default: torch's.")


class ServerConfig(BaseModel):
    """What the HTTP wing needs to know.  Times are seconds, sizes are bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    served_model_name: str | None = Field(None, description="Name clients use. Default: the model folder's name.")
    api_key: tuple[str, ...] = Field((), description="Keys of which clients must send one as a Bearer token. Default: open.")
    max_num_queued_reqs: int = Field(512, ge=1, description="Requests accepted at a time; more get 503.")
    max_num_queued_tokens: int = Field(1_000_000, ge=1, description="Prompt tokens accepted at a time; more get 503.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body.")
    first_token_timeout: float = Field(30.0, gt=0, description="Longest wait for the first token; then 504.")
    request_timeout: float = Field(600.0, gt=0, description="Longest time for a whole request; then 504.")
    shutdown_timeout: float = Field(30.0, ge=0, description="How long SIGTERM lets running requests finish.")
    engine_start_timeout: float = Field(1800.0, gt=0, description="Longest start of the engine.")
    engine_hang_timeout: float = Field(60.0, gt=0, description="An engine silent for this long is restarted.")
    max_engine_restarts: int = Field(5, ge=0, description="Restarts within ten minutes before the server gives up.")
    stream_interval: float = Field(0.0, ge=0, le=0.02, description="Longest wait to send tokens of a stream together.")
    default_max_length: int = Field(2048, ge=2, description="ChatGLM protocol: prompt plus answer in tokens.")
    default_top_p: float = Field(0.7, gt=0, le=1, description="Default top_p of chat requests.")
    default_temperature: float = Field(0.95, ge=0, description="Default temperature of chat requests.")
    default_top_k: int = Field(50, ge=-1, description="Default top_k of chat requests; the released code applies 50.")
    allow_special_tokens: bool = Field(
        False, description="Let text from users become special tokens, as the released code does (a <sop> moves the context border)."
    )
    resume_seconds: float = Field(60.0, ge=0, description="How long an answer waits for a WebSocket client to come back.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Level of the log.")
