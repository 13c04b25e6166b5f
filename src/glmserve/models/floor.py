"""The least that a workload costs on a chip: bytes that must be read and arithmetic that must be done.  Calculated; no torch.

Counted are the matrices (not norms, biases, rotary, sampling, nor the embedding's rows) and the keys and values.  Each decode step
reads every matrix once for all of its requests, and each request's own K/V; reading and arithmetic overlap perfectly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glmserve.models.spec import ModelSpec
from glmserve.protocol.weight_format import bytes_per_number


@dataclass(frozen=True)
class Chip:
    """What one device was measured to do: bytes a second of a copy (read plus written), FLOPs a second of a large matrix product."""

    name: str
    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Workload:
    """Prompts of one length, handed in all at once, each answered with the same number of tokens."""

    name: str
    num_prompts: int
    input_len: int
    output_len: int
    repeats: int = 2


@dataclass(frozen=True)
class Floor:
    """The least time of a workload, in seconds, and what it is made of: all bytes read, all floating-point operations."""

    seconds: float
    num_bytes: float
    num_flops: float


def layer_values(spec: ModelSpec) -> int:
    """Numbers in the matrices of all layers that a step multiplies by."""
    attention = spec.hidden_size * (spec.qkv_values + spec.num_heads * spec.head_dim)
    layer = attention + spec.num_mlp_matrices * spec.hidden_size * spec.intermediate_size
    return spec.num_layers * layer - (spec.hidden_size * spec.qkv_values if spec.knows_first_qkv else 0)


def head_values(spec: ModelSpec) -> int:
    """Numbers in the matrix that makes logits."""
    return spec.vocab_size * spec.hidden_size


def layer_bytes(spec: ModelSpec, number_bytes: float) -> float:
    """Bytes of the matrices of all layers as they are kept; `number_bytes` are those of one that is not quantized."""
    return layer_values(spec) * bytes_per_number(spec.layer_format, number_bytes)


def head_bytes(spec: ModelSpec, number_bytes: float) -> float:
    """Bytes of the matrix that makes logits."""
    return head_values(spec) * bytes_per_number(spec.head_format, number_bytes)


def floor_of(
    workload: Workload, spec: ModelSpec, chip: Chip, *, max_num_seqs: int = 256, weight_bytes: float = 2, kv_bytes: float = 2
) -> Floor:
    """Prefill arithmetic; then for each token of the answers the larger of reading the weights and computing, plus the mean context's K/V.

    `weight_bytes` and `kv_bytes` are bytes a number; a quantized matrix of `spec` takes those of its format.  More prompts than
    `max_num_seqs` go in so many waves.
    """
    batch = min(workload.num_prompts, max_num_seqs)
    steps = workload.num_prompts / batch * workload.output_len
    values = layer_values(spec) + head_values(spec)
    prefill_flops = 2 * layer_values(spec) * workload.input_len * workload.num_prompts
    step_flops = 2 * values * batch
    matrix_bytes = layer_bytes(spec, weight_bytes) + head_bytes(spec, weight_bytes)
    step_kv_bytes = batch * (workload.input_len + workload.output_len / 2) * spec.kv_values_per_token * kv_bytes
    step_seconds = max(matrix_bytes / chip.bytes_per_second, step_flops / chip.flops_per_second)
    return Floor(
        seconds=prefill_flops / chip.flops_per_second + steps * (step_seconds + step_kv_bytes / chip.bytes_per_second),
        num_bytes=steps * (matrix_bytes + step_kv_bytes),
        num_flops=prefill_flops + steps * step_flops,
    )


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step needs at least: floating-point operations, bytes read and bytes written."""

    flops: float
    read_bytes: float
    write_bytes: float


class StepCosts:
    """The cost of each step of one model: every matrix is read once a step, each request's own K/V once, new K/V written once.

    Unlike `floor_of` it counts the arithmetic of attention too.  `layer_bytes` and `head_bytes` are what the matrices really take, so that
    a quantized model has its own, smaller, cost; `kv_bytes` is bytes a number.
    """

    def __init__(self, spec: ModelSpec, layer_bytes: float, head_bytes: float, kv_bytes: float) -> None:
        self._layer_flops = 2 * layer_values(spec)
        self._head_flops = 2 * head_values(spec)
        self._pair_flops = 4 * spec.num_layers * spec.num_heads * spec.head_dim  # a query and a key: their product, and the value's part
        self._layer_bytes = layer_bytes
        self._head_bytes = head_bytes
        self._token_bytes = spec.kv_values_per_token * kv_bytes

    def prefill(self, chunks: Iterable[tuple[int, int, int]], num_sampled: int) -> StepCost:
        """Of a step over pieces of prompts, each (tokens before it, tokens, how many first tokens of its sequence all of them see).

        At the end of `num_sampled` of them the next token is sampled; where it is none, the matrix that makes logits is not read.
        """
        tokens, earlier, pairs = 0, 0, 0
        for start, length, context_len in chunks:
            tokens += length
            earlier += start
            stop = start + length
            border = min(max(context_len, start), stop)  # where those begin that see no more than what comes before them
            pairs += (border - start) * context_len + (border + 1 + stop) * (stop - border) // 2
        flops = self._layer_flops * tokens + self._head_flops * num_sampled + self._pair_flops * pairs
        matrix_bytes = self._layer_bytes + (self._head_bytes if num_sampled else 0)
        return StepCost(flops, matrix_bytes + earlier * self._token_bytes, tokens * self._token_bytes)

    def decode(self, num_requests: int, num_context_tokens: int) -> StepCost:
        """Of a step that makes one token for each request; `num_context_tokens` is what they see together, the newest ones included."""
        return StepCost(
            flops=(self._layer_flops + self._head_flops) * num_requests + self._pair_flops * num_context_tokens,
            read_bytes=self._layer_bytes + self._head_bytes + num_context_tokens * self._token_bytes,
            write_bytes=num_requests * self._token_bytes,
        )
