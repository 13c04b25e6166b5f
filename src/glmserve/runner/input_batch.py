"""A scheduled batch as numbers on the device.  Built on the host with numpy, sent in one transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from glmserve.kernels.decode_rows import NUM_FIELDS, remember_ids, unpack_rows
from glmserve.layers.attention import AttentionMetadata, HostSequences
from glmserve.layers.rotary import RotaryTable
from glmserve.scheduler.batch import PrefillChunk
from glmserve.scheduler.request import Request

NUM_SEQUENCE_FIELDS = 3
NUM_BUFFERS = 3  # one being filled, one on its way, one being read by the step that runs


@dataclass(frozen=True, slots=True)
class PrefillArrays:
    """A prefill step on the host, all chunks one after the other.

    tokens: int32 [num_tokens, 2 + axes]: id, cache slot, position on each axis; tables: each sequence's K/V blocks.  Lengths count the
    soft tokens, which lie before each sequence's own; a context is what all of a sequence's queries see.
    """

    tokens: np.ndarray
    tables: list[list[int]]
    query_lens: list[int]
    seq_lens: list[int]
    context_lens: list[int]

    @property
    def whole(self) -> bool:
        """Whether every sequence starts at its first token."""
        return self.query_lens == self.seq_lens


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """token_ids: int64 [num_tokens], and how they attend; last_rows: int32 [num_seqs], where each sequence's last token is among them."""

    token_ids: torch.Tensor
    metadata: AttentionMetadata
    last_rows: torch.Tensor


def prefill_arrays(chunks: list[PrefillChunk], block_size: int, axes: int, num_soft_tokens: int = 0) -> PrefillArrays:
    """The chunks of a step as numbers, all at once: the first step of a burst waits for this, and the GPU with it."""
    requests, lengths = [chunk.request for chunk in chunks], [chunk.length for chunk in chunks]

    def for_tokens(of_chunks: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.repeat(np.asarray(of_chunks, dtype=np.int32), lengths)

    tokens = np.empty((sum(lengths), 2 + axes), dtype=np.int32)
    index = np.arange(len(tokens), dtype=np.int32) + for_tokens([chunk.start for chunk in chunks] - _starts(lengths))
    place = num_soft_tokens + index
    ids = (chunk.request.token_ids[chunk.start : chunk.start + chunk.length] for chunk in chunks)
    tokens[:, 0] = np.fromiter(chain.from_iterable(ids), np.int32, len(tokens))
    blocks = np.fromiter(chain.from_iterable(request.block_ids for request in requests), np.int32)
    block = for_tokens(_starts([len(request.block_ids) for request in requests])) + place // block_size
    tokens[:, 1] = blocks[block] * block_size + place % block_size
    context_lens, masks = for_tokens([r.context_len for r in requests]), for_tokens([r.mask_position for r in requests])
    in_context = (index < context_lens) | (masks < 0)  # as in `Request.positions_of`
    tokens[:, 2] = np.where(in_context, index, masks)
    if axes == 2:
        tokens[:, 3] = np.where(in_context, 0, index - context_lens + 1)
    return PrefillArrays(
        tokens,
        [request.block_ids for request in requests],
        lengths,
        [num_soft_tokens + chunk.start + chunk.length for chunk in chunks],
        [num_soft_tokens + request.context_len for request in requests],
    )


def _starts(lengths: list[int]) -> np.ndarray:
    """Where each begins in all of them, one after the other."""
    return np.cumsum(lengths) - lengths


def fill_sequences(out: np.ndarray, arrays: PrefillArrays) -> None:
    """A row a sequence: where its queries start, its length, its context's, its blocks.  out: int32 [at least num_seqs, 3 + max_blocks]."""
    start = 0
    lengths = zip(arrays.query_lens, arrays.seq_lens, arrays.context_lens, arrays.tables, strict=True)
    for row, (query_len, seq_len, context_len, table) in zip(out, lengths, strict=False):
        row[:NUM_SEQUENCE_FIELDS] = start, seq_len, context_len
        row[NUM_SEQUENCE_FIELDS : NUM_SEQUENCE_FIELDS + len(table)] = table
        start += query_len


def prefill_inputs(arrays: PrefillArrays, rotary: RotaryTable, device: torch.device) -> PrefillInputs:
    """The same on the device."""
    sequences = np.zeros((len(arrays.tables) + 1, NUM_SEQUENCE_FIELDS + max(map(len, arrays.tables))), dtype=np.int32)
    fill_sequences(sequences, arrays)
    sequences[-1, 0] = len(arrays.tokens)
    tokens, on_device = (torch.from_numpy(array).to(device, non_blocking=True) for array in (arrays.tokens, sequences))
    host = HostSequences(arrays.tables, arrays.query_lens, arrays.seq_lens, arrays.context_lens)
    return unpack_prefill(tokens, on_device, rotary, max(arrays.query_lens), arrays.whole, host)


def unpack_prefill(
    tokens: torch.Tensor, sequences: torch.Tensor, rotary: RotaryTable, max_query_len: int, whole: bool, host: HostSequences | None
) -> PrefillInputs:
    """tokens as in `PrefillArrays`; sequences: int32 [num_seqs + 1, 3 + max_blocks] as `fill_sequences` leaves them, the last row saying
    where the queries end; `host` where the host knows them too.  Also inside a CUDA graph."""
    token_ids, slots, positions = tokens[:, 0].long(), tokens[:, 1].long(), tokens[:, 2:].long()
    count = len(sequences)
    fields = sequences.new_empty((NUM_SEQUENCE_FIELDS, -(-count // 4) * 4))  # each begins at 16 bytes: Triton compiles once
    fields[:, :count] = sequences[:, :NUM_SEQUENCE_FIELDS].t()
    starts, seq_lens, context_lens = fields[:, :count]
    cos, sin = rotary.lookup(positions)
    metadata = AttentionMetadata(
        cos=cos,
        sin=sin,
        slot_mapping=slots,
        block_tables=sequences[:-1, NUM_SEQUENCE_FIELDS:],
        seq_lens=seq_lens[:-1],
        query_starts=starts,
        context_lens=context_lens[:-1],
        max_query_len=max_query_len,
        whole=whole,
        padded=host is None,
        host=host or HostSequences([], [], [], []),
    )
    return PrefillInputs(token_ids, metadata, starts[1:] - 1)


class DecodeInputs:
    """The newest token of up to `max_num_seqs` requests, in buffers whose addresses never change, so that CUDA graphs can hold them.

    A decode step computes these tokens; a prefill step that samples has them among others.

    One row is NUM_FIELDS numbers and the block table: [max_num_seqs, NUM_FIELDS + max_blocks] int32.  Unused rows keep sequence length 0
    and point at the null block and at a spare persistent row.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device, num_soft_tokens: int,
        more_programs: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.block_size = block_size
        self.num_soft_tokens = num_soft_tokens
        self.device = device
        self.max_num_seqs = max_num_seqs
        self.more_programs = more_programs
        shape = (max_num_seqs, NUM_FIELDS + max_blocks)
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(shape, dtype=torch.int32, pin_memory=pinned) for _ in range(NUM_BUFFERS)]
        self._sampled = [torch.zeros(max_num_seqs, dtype=torch.int64, pin_memory=pinned) for _ in range(NUM_BUFFERS)]
        self._turn = 0
        self.packed = torch.zeros(shape, dtype=torch.int32, device=device)
        # The last token each persistent row sampled: the next step's input, which the host need not know yet.
        self.last_token_ids = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=device)

    def fill(self, requests: list[Request], num_rows: int) -> HostSequences:
        """Send the requests' newest tokens, and unused rows up to `num_rows`, to the device."""
        host = self._hosts[self._turn]
        self._turn = (self._turn + 1) % NUM_BUFFERS
        array = host.numpy()
        seq_lens = []
        for row, request in enumerate(requests):
            index = request.num_computed_tokens - 1  # scheduling has counted this token as computed
            place = self.num_soft_tokens + index
            seq_lens.append(place + 1)
            known = index < len(request.token_ids)
            position, second = request.positions_of(index)
            block_ids = request.block_ids
            slot = block_ids[place // self.block_size] * self.block_size + place % self.block_size
            array[row, :NUM_FIELDS] = (request.token_ids[index] if known else -1, request.row, position, second, slot, place + 1)
            array[row, NUM_FIELDS : NUM_FIELDS + len(block_ids)] = block_ids
        array[len(requests) : num_rows, :NUM_FIELDS] = (0, self.max_num_seqs, 0, 0, 0, 0)
        self.packed[:num_rows].copy_(host[:num_rows], non_blocking=True)
        ones = [1] * len(requests)
        return HostSequences([request.block_ids for request in requests], ones, seq_lens, [0] * len(requests))

    def unpack(
        self, num_rows: int, rotary: RotaryTable, axes: int, host: HostSequences | None = None
    ) -> tuple[torch.Tensor, AttentionMetadata]:
        """Token ids [num_rows] and metadata of the first rows, computed on the device (also inside a CUDA graph)."""
        packed = self.packed[:num_rows]
        rows = unpack_rows(packed, self.last_token_ids, rotary.cos, rotary.sin, axes, self.more_programs(num_rows))
        metadata = AttentionMetadata(
            cos=rows.cos,
            sin=rows.sin,
            slot_mapping=rows.slots,
            block_tables=packed[:, NUM_FIELDS:],
            seq_lens=rows.seq_lens,
            pieces=rows.pieces,
            host=host or HostSequences([], [], [], []),
        )
        return rows.token_ids, metadata

    def keep(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Remember what each row that was filled last sampled, for its request's next step.  token_ids: int64 [number of requests].

        Returns where the host finds them once the step has run, for as long as two more steps.
        """
        for_host = self._sampled[self._turn][: len(token_ids)]
        remember_ids(self.packed, token_ids, self.last_token_ids, for_host)
        return for_host
