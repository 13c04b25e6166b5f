"""What rounding costs the poem model in what it can do: the 500 fixed requests, answered greedily under each format of weights and K/V.

    python -m benchmarks.poem_forms MODEL [--device cuda --dtype bfloat16] [--batch 32] [--limit 500]

MODEL is the model before its rounding (`python -m training.export --float16`), or any folder of the same tokenizer.  A right form is the
right number of lines and of characters in each half.  "Same answer" counts answers that equal those of the first row to the character.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import torch

from benchmarks.quality import MODES, Mode
from glmserve import LLM, SamplingParams
from training.evaluate import form_accuracy
from training.fixed_requests import FixedRequest, read_requests

MAX_TOKENS = 220


def main() -> None:
    """One row a mode."""
    arguments = parse_arguments()
    requests = read_requests()[:: max(1, 500 // arguments.limit)]
    groups = list(form_accuracy(requests, [""] * len(requests)))
    print(f"{len(requests)} requests, {arguments.batch} at a time, {arguments.model}\n")
    print(f"| weights | K/V | {' | '.join(groups)} | ended | same answer |\n|---|---|{'---|' * (len(groups) + 2)}")
    first: list[str] = []
    for mode in MODES:
        described, answers, ended = answer(arguments, requests, mode)
        first = first or answers
        counts = form_accuracy(requests, answers)
        cells = [f"{counts[group][0]} of {counts[group][1]}" for group in groups]
        same = sum(a == b for a, b in zip(answers, first, strict=True))
        print(f"| {described} | {' | '.join(cells)} | {ended} | {same} |", flush=True)


def answer(arguments: argparse.Namespace, requests: list[FixedRequest], mode: Mode) -> tuple[str, list[str], int]:
    """(the formats in words, all answers, how many ended by themselves)."""
    llm = LLM(
        str(arguments.model), device=arguments.device, dtype=arguments.dtype, max_num_seqs=arguments.batch,
        quantization=mode.quantization, kv_cache_dtype=mode.kv_cache_dtype,
    )  # fmt: skip
    ready = llm.engine.ready
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    outputs = [result.outputs[0] for result in llm.generate([request.prompt for request in requests], params, use_tqdm=False)]
    del llm
    gc.collect()  # so that the next model finds the GPU's memory free
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    weights = ready.dtype if mode.quantization == "none" else mode.quantization
    return f"{weights} | {ready.kv_cache_dtype}", [output.text for output in outputs], sum(o.finish_reason == "stop" for o in outputs)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Form accuracy of the poem model under each format of weights and K/V.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=500, help="about as many requests, spread over all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
