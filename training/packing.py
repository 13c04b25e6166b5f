"""Conversations as rows of one length for the GPU: several in a row, each with its own positions and its own mask.

A row is described by three numbers a token: its id, where its conversation starts, and where that conversation's `<sop>` is.
Everything else (two-dimensional positions, the prefix mask, the targets) follows from these and is computed on the device.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from training.chats import draw_chat
from training.poems import Library, Poem
from training.vocabulary import Vocabulary

ROW = 512  # tokens; the longest conversation that is trained on
OPEN_ROWS = 32  # rows that are filled at the same time
DRAWN_TWICE = ("词", "五言绝句")  # the rarer forms


@dataclass(frozen=True)
class Rows:
    """uint16 or int16 [rows, row length] each: token ids, index of the conversation's first token, index of its `<sop>`."""

    ids: np.ndarray
    start: np.ndarray
    border: np.ndarray

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three as int16 on `device`: 200 MB for a pass over all poems."""
        return tuple(torch.from_numpy(array.astype(np.int16)).to(device) for array in (self.ids, self.start, self.border))  # type: ignore[return-value]


@dataclass(frozen=True)
class Batch:
    """What the model takes: ids [B, T]; positions [2, B, T]; mask bool [B, 1, T, T], True where a row's token may look; targets [B, T]."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor  # -100 where nothing is to be predicted


def draw_rows(seed: int, poems: list[Poem], library: Library, vocabulary: Vocabulary) -> Rows:
    """One conversation for each of `poems` (two for the rarer forms), packed in random order."""
    rng = random.Random(seed)
    drawn = [poem for poem in poems for _ in range(1 + (poem.form in DRAWN_TWICE))]
    rng.shuffle(drawn)
    chats = (draw_chat(rng, poem, library) for poem in drawn)
    return pack((vocabulary.encode_prompt(chat.prompt), [*vocabulary.encode(chat.answer), vocabulary.eop]) for chat in chats)


def pack(pairs: Iterable[tuple[list[int], list[int]]], row: int = ROW) -> Rows:
    """(prompt, answer) ids into rows of `row` tokens, first fit; pairs that are longer than a row are left out."""
    done: list[list[tuple[list[int], list[int]]]] = []
    filling: list[list[tuple[list[int], list[int]]]] = []
    rooms: list[int] = []
    for pair in pairs:
        length = len(pair[0]) + len(pair[1])
        if length > row:
            continue
        place = next((index for index, room in enumerate(rooms) if room >= length), None)
        if place is None:
            if len(filling) == OPEN_ROWS:
                fullest = rooms.index(min(rooms))
                done.append(filling.pop(fullest))
                rooms.pop(fullest)
            filling.append([])
            rooms.append(row)
            place = len(filling) - 1
        filling[place].append(pair)
        rooms[place] -= length
    return _to_arrays(done + filling, row)


def _to_arrays(packed: list[list[tuple[list[int], list[int]]]], row: int) -> Rows:
    ids = np.full((len(packed), row), 3, np.uint16)  # <pad>
    own = np.arange(row, dtype=np.int16)
    start = np.tile(own, (len(packed), 1))  # padding: each token a conversation of its own, which sees itself
    border = start + 1
    for index, pairs in enumerate(packed):
        at = 0
        for prompt, answer in pairs:
            end = at + len(prompt) + len(answer)
            ids[index, at:end] = prompt + answer
            start[index, at:end] = at
            border[index, at:end] = at + len(prompt) - 1
            at = end
    return Rows(ids, start, border)


def to_batch(ids: torch.Tensor, start: torch.Tensor, border: torch.Tensor) -> Batch:
    """int16 [B, T] each, as `Rows` describes them."""
    ids, start, border = ids.long(), start.long(), border.long()
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    positions = torch.stack([at.minimum(border - 1) - start, (at - border + 1).clamp(min=0)])
    same = start[:, :, None] == start[:, None, :]
    sees = (at[:, None, :] < border[:, :, None]) | (at[:, None, :] <= at[:, :, None])
    following = torch.roll(ids, -1, 1)
    answered = (at >= border) & (torch.roll(start, -1, 1) == start)
    answered[:, -1] = False
    return Batch(ids, positions, (same & sees)[:, None], torch.where(answered, following, -100))
