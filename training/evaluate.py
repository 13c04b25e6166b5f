"""What a model is worth: its loss on unseen poems, the shapes of what it writes on request, and how much of it is copied.

It never trains.  Every step of `generate` computes whole sequences, which is wasteful and simple; the server has the fast way.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from training.chats import Chat, draw_chat
from training.fixed_requests import FixedRequest
from training.model import ChatGLM
from training.packing import ROW, Rows, pack, to_batch
from training.poems import FIXED_FORMS, Library, Poem
from training.vocabulary import Vocabulary


def mixed_chats(poems: list[Poem], seed: int = 0) -> list[Chat]:
    """One conversation around each poem, of all kinds, as in training."""
    rng, library = random.Random(seed), Library(poems)
    return [draw_chat(rng, poem, library) for poem in poems]


def title_chats(poems: list[Poem]) -> list[Chat]:
    """The plainest request, title and form, for each poem that has both; what perplexity is stated on."""
    return [
        Chat(f"以《{poem.title}》为题写一首{poem.form}", poem.text, poem.form) for poem in poems if poem.title and poem.form in FIXED_FORMS
    ]


def fits(chat: Chat, vocabulary: Vocabulary) -> bool:
    """Whether the conversation is short enough for a row; `rows_of` leaves longer ones out."""
    return len(vocabulary.encode_prompt(chat.prompt)) + len(vocabulary.encode(chat.answer)) < ROW


def rows_of(chats: Iterable[Chat], vocabulary: Vocabulary) -> Rows:
    """Packed, in their order."""
    return pack((vocabulary.encode_prompt(chat.prompt), [*vocabulary.encode(chat.answer), vocabulary.eop]) for chat in chats)


@torch.no_grad()
def answer_loss(model: ChatGLM, rows: Rows, batch_rows: int, device: torch.device) -> tuple[float, int]:
    """(nats over all answer tokens and their <eop>, number of those tokens)."""
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    model.eval()
    tensors = rows.tensors(device)
    for at in range(0, len(rows.ids), batch_rows):
        batch = to_batch(*(tensor[at : at + batch_rows] for tensor in tensors))
        logits = model.logits(model(batch.ids, batch.positions, batch.mask))
        total += F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum").double()
        count += int((batch.targets >= 0).sum())
    return total.item(), count


def character_perplexity(nats: float, chats: Sequence[Chat]) -> float:
    """exp(nats a character of the answers), marks and line breaks being characters; <eop> adds to the nats, not to the count."""
    return math.exp(nats / sum(len(chat.answer) for chat in chats))


def generate(
    model: ChatGLM, prompts: Sequence[list[int]], vocabulary: Vocabulary, max_tokens: int, *, top_p: float = 0.0, batch: int = 64
) -> list[list[int]]:
    """Answers without their <eop>; greedy, or with `top_p` at temperature 0.95 as the released chat() does."""
    model.eval()
    generator = torch.Generator(device=model.cos.device).manual_seed(0)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # like lengths together
    answers: dict[int, list[int]] = {}
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        batch_answers = _generate_batch(model, [prompts[index] for index in chosen], vocabulary, max_tokens, top_p, generator)
        answers.update(zip(chosen, batch_answers, strict=True))
    return [answers[index] for index in range(len(prompts))]


@torch.no_grad()
def _generate_batch(
    model: ChatGLM, prompts: Sequence[list[int]], vocabulary: Vocabulary, max_tokens: int, top_p: float, generator: torch.Generator
) -> list[list[int]]:
    device = model.cos.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.full((len(prompts), width + max_tokens), vocabulary.pad, device=device)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)] = torch.tensor(prompt, device=device)
    ends = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    rows = torch.arange(len(prompts), device=device)
    for step in range(max_tokens):
        seen = ids[:, : width + step]
        batch = to_batch(seen, torch.zeros_like(seen), (lengths - 1)[:, None].expand_as(seen))
        hidden = model(batch.ids, batch.positions, batch.mask)[rows, lengths + step - 1]
        chosen = _choose(model.logits(hidden).float(), top_p, generator)
        chosen = torch.where(ends, vocabulary.eop, chosen)
        ids[rows, lengths + step] = chosen
        ends |= chosen == vocabulary.eop
        if bool(ends.all()):
            break
    answers = [ids[index, length : length + max_tokens].tolist() for index, length in enumerate(lengths.tolist())]
    return [answer[: answer.index(vocabulary.eop)] if vocabulary.eop in answer else answer for answer in answers]


def form_accuracy(requests: Sequence[FixedRequest], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Group -> (right, all), and "all" over those that have a shape."""
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for request, answer in zip(requests, answers, strict=True):
        for group in (request.group, "all") if request.patterns else (request.group,):
            counts[group][0] += request.is_met_by(answer)
            counts[group][1] += 1
    return {group: (right, total) for group, (right, total) in counts.items()}


def copied_lines(answers: Iterable[str], prompts: Iterable[str], known_lines: set[str]) -> tuple[int, int]:
    """(lines that stand word for word in the training poems, all lines); lines that the prompt itself holds do not count."""
    copied = total = 0
    for answer, prompt in zip(answers, prompts, strict=True):
        for line in answer.split("\n"):
            if bare(line) and bare(line) not in bare(prompt):
                total += 1
                copied += bare(line) in known_lines
    return copied, total


def bare(text: str) -> str:
    """Without marks and spaces, which differ between spellings."""
    return "".join(character for character in text if character.isalnum())


def _choose(logits: torch.Tensor, top_p: float, generator: torch.Generator) -> torch.Tensor:
    if not top_p:
        return logits.argmax(-1)
    probabilities, order = (logits / 0.95).topk(50).values.softmax(-1), logits.topk(50).indices
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    return order.gather(1, torch.multinomial(kept, 1, generator=generator))[:, 0]
