"""One request inside the engine: its tokens, how many are computed, where its context ends.  Token ids only, no text."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.messages import EngineRequest, FinishReason, WaitCause


class Wait(NamedTuple):
    """Why the first in the queue was not started: how many ran, and which of them held most, when it came to the head of the queue."""

    cause: WaitCause = WaitCause.NONE
    num_ahead: int = 0
    largest_ahead: str = ""


class Request:
    """The engine's state of one sequence.

    `context_len` is the number of tokens before the first `<sop>` (0 for causal models): they attend to each other freely and
    are computed whole.  The border stays where it is when the request is preempted and recomputed.
    `num_in_flight` counts tokens that the GPU has been told to sample but whose ids the host has not read yet.
    """

    def __init__(self, message: EngineRequest, spec: ModelSpec, max_model_len: int, seed: int) -> None:
        self.request_id = message.request_id
        self.prompt_token_ids = message.prompt_token_ids
        self.params = message.sampling_params
        self.arrival_time = message.arrival_time
        self.priority = message.priority
        self.seed = seed
        self.context_len, self.mask_position = context_border(message.prompt_token_ids, spec)
        self.context_key: bytes | None = None  # what the K/V cache finds the context by, once that is known
        self.num_prompt_tokens = len(message.prompt_token_ids)
        room = max_model_len - self.num_prompt_tokens
        self.max_output_tokens = room if self.params.max_tokens is None else min(room, self.params.max_tokens)
        self.stop_token_ids = frozenset(self.params.stop_token_ids)

        self.token_ids = list(message.prompt_token_ids)  # prompt, then every output the host has read
        self.num_computed_tokens = 0
        self.num_in_flight = 0
        self.block_ids: list[int] = []
        self.row = -1  # its row in the runner's persistent tensors while it runs
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.first_scheduled_time = 0.0
        self.first_token_time = 0.0
        self.wait = Wait()
        self.preempted_since = 0.0  # 0 while it is not pushed back
        self.preempted_seconds = 0.0
        self.prefill_seconds_before = 0.0  # what the device had spent on prompts when its first token came
        self.prefill_tokens_before = 0  # and how many tokens of prompts that were

    @property
    def num_tokens(self) -> int:
        """Tokens the sequence has once everything in flight has landed."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        """Sampled tokens, those in flight included."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """Sampled tokens that the host has read."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def ready_to_decode(self) -> bool:
        """Only the newest token is left to compute."""
        return self.num_computed_tokens == self.num_tokens - 1

    @property
    def output_complete(self) -> bool:
        """Enough tokens are sampled or in flight; nothing more must be scheduled."""
        return self.num_output_tokens >= self.max_output_tokens

    def positions_of(self, index: int) -> tuple[int, int]:
        """The two position ids of token `index` (golden README, "2D positions").  Causal models use the first alone."""
        if index < self.context_len or self.mask_position < 0:
            return index, 0
        return self.mask_position, index - self.context_len + 1


def context_border(token_ids: list[int], spec: ModelSpec) -> tuple[int, int]:
    """(context length, mask position) of a prompt; (0, -1) for causal models.

    Source: modeling_chatglm.py, get_masks and get_position_ids: the first <sop> ends the context, the first [gMASK] (else the first
    [MASK]) is where the answer points.  Raises InvalidRequestError when a prefix model's prompt lacks either.
    """
    if spec.attention == "causal":
        return 0, -1
    try:
        context_len = token_ids.index(spec.bos_token_id)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidRequestError(
            f"the prompt's token ids lack <sop> ({spec.bos_token_id}): a ChatGLM-6B prompt ends with [gMASK] <sop>.", "prompt"
        ) from None
    for mask_token_id in (spec.gmask_token_id, spec.mask_token_id):
        with suppress(ValueError):
            return context_len, token_ids.index(mask_token_id)  # type: ignore[arg-type]
    raise InvalidRequestError(
        f"the prompt's token ids lack [gMASK] ({spec.gmask_token_id}) and [MASK] ({spec.mask_token_id}): "
        "a ChatGLM-6B prompt ends with [gMASK] <sop>.",
        "prompt",
    )
