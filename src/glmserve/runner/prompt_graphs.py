"""Prefill steps of few tokens as CUDA graphs: the GPU is done with them sooner than the host can launch their kernels.

A step is padded to a shape.  Sequences that are missing have no tokens; the tokens that are missing are one more sequence, which lies in
the null block and which nobody samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from glmserve.layers.rotary import RotaryTable
from glmserve.runner.cuda_graph import GraphMemory, StepGraphs
from glmserve.runner.input_batch import NUM_BUFFERS, NUM_SEQUENCE_FIELDS, PrefillArrays, PrefillInputs, fill_sequences, unpack_prefill

MOST_TOKENS = 1024  # beyond, the GPU takes as long as the host
_TOKENS = tuple(range(64, MOST_TOKENS + 1, 64))
_MOST_AT_THE_START = 512
_SEQUENCES = (1, 2, 4, 8)


class PromptShape(NamedTuple):
    """How many tokens and sampling sequences a graph holds, and whether all of them start at their first token."""

    tokens: int
    sequences: int
    whole: bool


class PromptGraphs(StepGraphs[PromptShape]):
    """Prefill steps by their shape, over inputs whose addresses never change.

    max_blocks: of a sequence, and of padding, which is a sequence of up to MOST_TOKENS.
    """

    def __init__(
        self,
        run: Callable[[PromptShape], torch.Tensor],
        max_num_seqs: int,
        max_blocks: int,
        axes: int,
        device: torch.device,
        memory: GraphMemory,
    ) -> None:
        super().__init__(run, memory)
        self._max_num_seqs = max_num_seqs
        tokens = (_TOKENS[-1], 2 + axes)
        sequences = (_SEQUENCES[-1] + 2, NUM_SEQUENCE_FIELDS + max_blocks)  # one of padding, and the row that closes
        pinned = device.type == "cuda"
        self._hosts = [
            [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for size in (tokens, sequences)] for _ in range(NUM_BUFFERS)
        ]
        self._turn = 0
        self._tokens, self._sequences = (torch.zeros(size, dtype=torch.int32, device=device) for size in (tokens, sequences))

    def shape_for(self, arrays: PrefillArrays, num_sampling: int) -> PromptShape | None:
        """The smallest shape that holds a step; None where it is too large for a graph, or a sequence of it does not sample yet."""
        num_sequences = len(arrays.tables)
        tokens = next((count for count in _TOKENS if count >= len(arrays.tokens)), None)
        sequences = next((count for count in _SEQUENCES if num_sequences <= count <= self._max_num_seqs), None)
        if not tokens or not sequences or num_sampling < num_sequences:
            return None
        return PromptShape(tokens, sequences, arrays.whole)

    def capture_lone_prompts(self, whole: bool) -> None:
        """The likeliest shapes of one new prompt, before there is any, and two that compile what the others do not."""
        likeliest = [PromptShape(tokens, 1, whole) for tokens in _TOKENS if tokens <= _MOST_AT_THE_START]
        others = [PromptShape(_TOKENS[0], 1, not whole)]
        if self._max_num_seqs > 1:  # a few newest tokens of a step of many
            others.append(PromptShape(_TOKENS[1], 2, whole))
        for shape in (*likeliest, *others):
            self.prepare_ahead(shape)

    def shapes(self, whole: bool) -> Iterator[PromptShape]:
        """All that have a graph or may get one, in the order of sequences."""
        for sequences in _SEQUENCES:
            if sequences <= self._max_num_seqs:
                yield from (PromptShape(tokens, sequences, whole) for tokens in _TOKENS)

    def prepare_ahead(self, shape: PromptShape) -> None:
        """`prepare` with a token in the null block as input, while no step is under way."""
        of_one_token = PrefillArrays(np.zeros((1, self._tokens.shape[1]), dtype=np.int32), [[0]], [1], [1], [0])
        self.fill(shape, of_one_token)
        self.prepare(shape)

    def fill(self, shape: PromptShape, arrays: PrefillArrays) -> None:
        """Send a step to the device, padded to its shape."""
        tokens, sequences = self._hosts[self._turn]
        self._turn = (self._turn + 1) % NUM_BUFFERS
        pad(tokens.numpy(), sequences.numpy(), shape, arrays)
        self._tokens[: shape.tokens].copy_(tokens[: shape.tokens], non_blocking=True)
        self._sequences[: shape.sequences + 2].copy_(sequences[: shape.sequences + 2], non_blocking=True)

    def unpack(self, shape: PromptShape, rotary: RotaryTable) -> PrefillInputs:
        """What was filled last, computed on the device (also inside a CUDA graph)."""
        return unpack_prefill(
            self._tokens[: shape.tokens], self._sequences[: shape.sequences + 2], rotary, shape.tokens, shape.whole, host=None
        )


def pad(tokens: np.ndarray, sequences: np.ndarray, shape: PromptShape, arrays: PrefillArrays) -> None:
    """Write a step and what its shape has beyond it, as `unpack_prefill` takes them."""
    count, padding = len(arrays.tokens), shape.sequences  # the latter's row
    tokens[:count] = arrays.tokens
    tokens[count : shape.tokens] = 0
    sequences[:padding, :NUM_SEQUENCE_FIELDS] = count, 0, 0
    fill_sequences(sequences, arrays)
    sequences[padding] = 0
    sequences[padding, :NUM_SEQUENCE_FIELDS] = count, shape.tokens - count, 0
    sequences[padding + 1, 0] = shape.tokens
