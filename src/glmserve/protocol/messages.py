"""Every message that crosses the door, and nothing else.

Front end -> engine: EngineRequest, AbortRequest, DrainRequest.  Engine -> front end: EngineReady once, then one EngineOutputs
a step, and EngineHeartbeat while there is nothing to do.  Times are seconds of CLOCK_MONOTONIC, which processes of one host share.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from glmserve.protocol.sampling_params import SamplingParams
from glmserve.protocol.stats import EngineStats
from glmserve.protocol.weight_format import WeightFormat


class FinishReason(StrEnum):
    """How a request ended.  Each accepted request ends with exactly one of these."""

    STOP = "stop"  # end token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's limit
    ABORT = "abort"  # the client went away, or the server asked for it
    ERROR = "error"  # the engine could not go on with it
    TIMEOUT = "timeout"  # its deadline passed


class EngineRequest(msgspec.Struct, tag="request", array_like=True):
    """One sequence to generate; a user's n > 1 becomes n of these.  The engine knows token ids, never text."""

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    arrival_time: float
    priority: int = 0  # lower runs first, as in vLLM


class AbortRequest(msgspec.Struct, tag="abort", array_like=True):
    """Stop these at once and free their blocks.  Unknown ids are ignored: the answer may already be on its way."""

    request_ids: list[str]


class DrainRequest(msgspec.Struct, tag="drain", array_like=True):
    """Finish what is running and waiting, then end the engine process."""


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log probabilities of one step, the sampled token first, then the best ones in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]  # 1 is the most likely


class WaitCause(StrEnum):
    """What kept the first request in the engine's queue from running."""

    NONE = "none"  # it waited for the step before, or for prompts that were computed first
    KV_FULL = "kv_full"  # no K/V blocks for it
    BATCH_FULL = "batch_full"  # max_num_seqs requests ran
    BATCHING = "batching"  # the batching mode lets nobody join now


class RequestTimes(msgspec.Struct, array_like=True):
    """Where a request's time went, seconds of CLOCK_MONOTONIC; sent with its last output."""

    arrival: float
    first_scheduled: float
    first_token: float
    finished: float
    num_preemptions: int = 0
    wait_cause: WaitCause = WaitCause.NONE  # of the time between arrival and first_scheduled
    num_ahead: int = 0  # requests that ran when it began to wait for that
    largest_ahead: str = ""  # the one of them that held most K/V blocks
    prefill_stall: float = 0.0  # seconds after its first token that the device spent on prompts
    prefill_stall_tokens: int = 0  # how many tokens of prompts that were
    preempted: float = 0.0  # seconds that it spent pushed back to the queue


class Refusal(StrEnum):
    """Why the engine did not take a request: it cannot be served as it is written, or the engine takes nothing more."""

    INVALID = "invalid"
    DRAINING = "draining"


class RequestOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """New tokens of one request after one step."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # set where a stop token (not the model's own end token) ended it
    logprobs: list[TokenLogprobs] | None = None  # one entry a new token
    num_cached_tokens: int = 0
    times: RequestTimes | None = None
    error: str | None = None
    refusal: Refusal | None = None  # where the engine did not take the request


class EngineOutputs(msgspec.Struct, tag="outputs", array_like=True):
    """Everything one engine step produced."""

    outputs: list[RequestOutput]
    stats: EngineStats
    time: float
    without_work: list[tuple[float, float]] = []  # (from, to): the device had no request, not told before


class EngineHeartbeat(msgspec.Struct, tag="heartbeat", array_like=True):
    """The loop turned.  `loading` says what the engine is doing before it is ready, for people to read."""

    time: float
    loading: str | None = None
    stats: EngineStats | None = None
    without_work: list[tuple[float, float]] = []  # as in EngineOutputs


class EngineReady(msgspec.Struct, tag="ready", array_like=True):
    """The model is loaded and where it lies."""

    model: str
    device: str
    device_name: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    num_kv_blocks: int
    block_size: int
    weights_bytes: int
    kv_cache_bytes: int
    placement: list[list[str]]  # rows of (part, device, size) for people to read
    load_seconds: dict[str, float]
    device_peak_flops_per_second: float = 0.0  # measured: a large matrix product in `dtype`, in fp8 if the weights are; 0: not measured
    device_peak_bytes_per_second: float = 0.0  # measured: a large copy, read plus written
    device_uuid: str | None = None  # of a GPU, as NVML spells it
    quantization: WeightFormat = "none"  # what the numbers of the layers' matrices were rounded to
    kv_cache_dtype: str = "float32"

    @property
    def num_kv_tokens(self) -> int:
        """How many tokens of context the K/V pool holds."""
        return self.num_kv_blocks * self.block_size


class EngineFailed(msgspec.Struct, tag="failed", array_like=True):
    """The engine cannot start or go on; `message` says what to do.  Its process ends after this."""

    message: str
    retryable: bool = False


ToEngine = EngineRequest | AbortRequest | DrainRequest
FromEngine = EngineOutputs | EngineHeartbeat | EngineReady | EngineFailed
