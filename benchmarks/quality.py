"""What rounding costs: the perplexity of fixed answers under each format of weights and K/V, through the serving engine.

    python benchmarks/quality.py MODEL [--text benchmarks/quality.jsonl] [--device cuda --dtype bfloat16] [--batch 32]

MODEL is a folder with trained weights.  TEXT has a line for each answer: {"prompt": "...", "answer": "..."}.  Every answer is fed to the
engine token by token in place of what it would sample, so all of decode is as in serving: its kernels, its cache, its batches.
Perplexity is that of a token, the end token counted.  Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmserve import LLM, SamplingParams
from glmserve.protocol.messages import EngineRequest
from glmserve.runner.sampler import Sampled
from glmserve.scheduler.request import Request


@dataclass(frozen=True)
class Mode:
    """Formats as the flags name them, and the most that perplexity may rise above the first mode's."""

    quantization: str
    kv_cache_dtype: str
    bar: float | None


MODES = [
    Mode("none", "auto", None),
    Mode("int8", "auto", 0.005),
    Mode("fp8", "auto", 0.005),
    Mode("int4", "auto", 0.03),
    Mode("none", "fp8", 0.005),
    Mode("fp8", "fp8", 0.005),
]


class Teacher:
    """Stands in for an engine's sampler: "samples" the next token of each request's fixed answer and adds up what it cost."""

    def __init__(self, answers: dict[str, list[int]], device: torch.device) -> None:
        self._answers = answers
        self._taken = dict.fromkeys(answers, 0)
        self._nats = torch.zeros((), dtype=torch.float64, device=device)
        self.num_tokens = 0

    @property
    def nats(self) -> float:
        """Minus the log probability of all tokens so far."""
        return self._nats.item()

    def sample(self, logits: torch.Tensor, requests: list[Request]) -> Sampled:
        """As Sampler.sample."""
        rows = [row for row, request in enumerate(requests) if self._taken[request.request_id] < len(self._answers[request.request_id])]
        ids = torch.tensor([self._next(request.request_id) for request in requests], device=logits.device)
        scores = logits[rows].double()
        self._nats += (scores.logsumexp(dim=-1) - scores.gather(1, ids[rows][:, None])[:, 0]).sum()
        self.num_tokens += len(rows)
        return Sampled(ids)

    def _next(self, request_id: str) -> int:
        answer, step = self._answers[request_id], self._taken[request_id]
        self._taken[request_id] += 1
        return answer[min(step, len(answer) - 1)]  # a step launched before the last one was read is thrown away


def main() -> None:
    """One line a mode."""
    arguments = parse_arguments()
    pairs = [json.loads(line) for line in arguments.text.read_text(encoding="utf-8").splitlines()]
    print(f"{len(pairs)} answers of {arguments.text.name}, {arguments.batch} at a time, {arguments.model}\n")
    print("| weights | K/V | weights, MB | perplexity | above the first | bar |\n|---|---|---|---|---|---|")
    base, missed = None, False
    for mode in MODES:
        ready, value = measure(arguments, pairs, mode)
        base = base or value
        rise = value / base - 1
        verdict = "" if mode.bar is None else f"{mode.bar:.1%}: {'kept' if rise <= mode.bar else 'MISSED'}"
        missed |= mode.bar is not None and rise > mode.bar
        weights = ready.dtype if mode.quantization == "none" else mode.quantization
        print(
            f"| {weights} | {ready.kv_cache_dtype} | {ready.weights_bytes / 1e6:.1f} | {value:.4f} | {rise:+.2%} | {verdict} |", flush=True
        )
    raise SystemExit(missed)


def measure(arguments: argparse.Namespace, pairs: list[dict[str, str]], mode: Mode) -> tuple[Any, float]:
    """(the engine's own description, perplexity of a token)."""
    llm = LLM(
        str(arguments.model), device=arguments.device, dtype=arguments.dtype, max_num_seqs=arguments.batch,
        quantization=mode.quantization, kv_cache_dtype=mode.kv_cache_dtype,
    )  # fmt: skip
    value = perplexity(llm, pairs)
    ready = llm.engine.ready
    del llm
    gc.collect()  # so that the next model finds the GPU's memory free
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return ready, value


def perplexity(llm: LLM, pairs: list[dict[str, str]]) -> float:
    """Of a token of the answers, each with its end token."""
    tokenizer, engine = llm.get_tokenizer(), llm.engine
    end = list(llm.spec.eos_token_ids[:1])
    prompts = {str(index): tokenizer.encode(pair["prompt"]) for index, pair in enumerate(pairs)}
    answers = {str(index): tokenizer.encode(pair["answer"], add_special_tokens=False) + end for index, pair in enumerate(pairs)}
    teacher = Teacher(answers, engine.runner.device)
    engine.runner.sampler.sample = teacher.sample  # type: ignore[method-assign]
    for name, prompt in prompts.items():
        params = SamplingParams(temperature=0.0, max_tokens=len(answers[name]), ignore_eos=True)
        engine.add_request(EngineRequest(name, prompt, params, time.monotonic()))
    while engine.has_unfinished_requests():
        engine.step()
    expected = sum(map(len, answers.values()))
    if teacher.num_tokens != expected:
        raise SystemExit(f"{teacher.num_tokens} of {expected} tokens were scored: an answer ended early.")
    return math.exp(teacher.nats / expected)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Perplexity of fixed answers under each format of weights and K/V.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("quality.jsonl"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
