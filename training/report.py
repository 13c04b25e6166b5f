"""Writes what a trained model is worth into report.json and samples.json: losses in float32, bfloat16 and int8, shapes, copying.

Both are read by the model card; nothing here is chosen by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.evaluate import (
    answer_loss,
    bare,
    character_perplexity,
    copied_lines,
    fits,
    form_accuracy,
    generate,
    mixed_chats,
    rows_of,
    title_chats,
)
from training.fixed_requests import read_requests
from training.model import ChatGLM
from training.poems import Poem
from training.quantize import dequantized_state, quantized_state
from training.vocabulary import Vocabulary


@dataclass(frozen=True)
class ReportLimits:
    """Rows a batch, fixed requests to answer (0: all), tokens an answer."""

    batch_rows: int
    max_requests: int
    max_answer: int


def write_report(model: ChatGLM, vocabulary: Vocabulary, train: list[Poem], valid: list[Poem], out: Path, limits: ReportLimits) -> None:
    """Measures the model as trained and as rounded to int8; leaves the int8 weights in it."""
    plain = ChatGLM(model.shape).to(model.cos.device)  # uncompiled: lengths vary here
    plain.load_state_dict(model.state_dict())
    report: dict[str, Any] = {"losses": {}}
    losses = report["losses"]
    losses["float32"] = _losses(plain, vocabulary, valid, limits.batch_rows)
    with torch.autocast(plain.cos.device.type, torch.bfloat16):
        losses["bfloat16"] = _losses(plain, vocabulary, valid, limits.batch_rows)
    plain.load_state_dict(dequantized_state(quantized_state(plain.state_dict())))
    losses["int8"] = _losses(plain, vocabulary, valid, limits.batch_rows)
    known = {bare(line) for poem in train for line in poem.lines}
    samples = {}
    for name, top_p in (("greedy", 0.0), ("sampled", 0.7)):
        samples[name], report[name] = _answers(plain, vocabulary, known, top_p, limits)
    (out / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    (out / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")
    print(json.dumps(report, ensure_ascii=False), flush=True)


def _losses(model: ChatGLM, vocabulary: Vocabulary, valid: list[Poem], batch_rows: int) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, chats in (("mixed", mixed_chats(valid)), ("title", title_chats(valid))):
        chats = [chat for chat in chats if fits(chat, vocabulary)]
        nats, count = answer_loss(model, rows_of(chats, vocabulary), batch_rows, model.cos.device)
        result |= {f"{name}_loss": nats / count, f"{name}_perplexity": math.exp(nats / count)}
        result |= {f"{name}_tokens": count, f"{name}_character_perplexity": character_perplexity(nats, chats)}
    return result


def _answers(
    model: ChatGLM, vocabulary: Vocabulary, known_lines: set[str], top_p: float, limits: ReportLimits
) -> tuple[list[str], dict[str, Any]]:
    """Answers to the fixed requests by the int8 weights, and what they amount to."""
    requests = read_requests()[: limits.max_requests or None]
    prompts = [vocabulary.encode_prompt(request.prompt) for request in requests]
    ids = generate(model, prompts, vocabulary, limits.max_answer, top_p=top_p)
    answers = [vocabulary.decode(answer) for answer in ids]
    copied, lines = copied_lines(answers, [request.prompt for request in requests], known_lines)
    facts = {"form_accuracy": form_accuracy(requests, answers), "copied_lines": copied, "lines": lines}
    return answers, facts | {"ended": sum(len(answer) < limits.max_answer for answer in ids), "requests": len(requests)}
