"""Does the GPU wait for the host between two decode steps?  Device events around each step of the real engine.

    python benchmarks/decode_steps.py [--model benchmarks/chatglm-6b] [--batches 1,64,256]

Prints, for each batch size, the median time a step keeps the device busy, the median gap from its end to the start of the next, and the
time the host takes to launch one.  Random weights, prompts of 128 tokens, answers of 64, greedy, the end token ignored.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from glmserve import LLM, SamplingParams
from glmserve.runner.model_runner import StepHandle
from glmserve.scheduler.batch import ScheduledBatch

INPUT_LEN, OUTPUT_LEN = 128, 64
SUFFIX_IDS = [130001, 130004]  # [gMASK] <sop>


class StepClock:
    """Stands in for the runner's `execute` and keeps (first event, last event, host seconds) of each full decode step."""

    def __init__(self, llm: LLM) -> None:
        self._execute = llm.engine.runner.execute
        self.batch_size = 0
        self.steps: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        llm.engine.runner.execute = self.execute  # type: ignore[method-assign]

    def execute(self, batch: ScheduledBatch) -> StepHandle:
        """One step between two events."""
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started = time.perf_counter()
        first.record()
        handle = self._execute(batch)
        last.record()
        if len(batch.requests) == self.batch_size:
            self.steps.append((first, last, time.perf_counter() - started))
        return handle


def main() -> None:
    """One line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parent / "chatglm-6b"))
    parser.add_argument("--batches", default="1,64,256")
    options = parser.parse_args()
    llm = LLM(model=options.model, device="cuda", dtype="bfloat16", load_format="dummy", skip_tokenizer_init=True)
    clock = StepClock(llm)
    for batch_size in map(int, options.batches.split(",")):
        clock.batch_size = batch_size
        for seed in range(2):  # the first run captures the graph
            clock.steps.clear()
            llm.generate(prompts(batch_size, seed), SamplingParams(temperature=0.0, max_tokens=OUTPUT_LEN, ignore_eos=True), use_tqdm=False)
        torch.cuda.synchronize()
        print(report(batch_size, clock.steps), flush=True)


def prompts(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Random ids that end as every ChatGLM-6B prompt does."""
    rng = random.Random(f"{seed} {count}")
    return [
        {"prompt_token_ids": [*(rng.randrange(1000, 60000) for _ in range(INPUT_LEN - len(SUFFIX_IDS))), *SUFFIX_IDS]} for _ in range(count)
    ]


def report(batch_size: int, steps: list[tuple[torch.cuda.Event, torch.cuda.Event, float]]) -> str:
    """Medians, the first and last steps left out: prompts lie between them."""
    steps = steps[2:-1]
    busy = statistics.median(first.elapsed_time(last) for first, last, _ in steps)
    gap = statistics.median(before[1].elapsed_time(after[0]) for before, after in pairwise(steps))
    host = statistics.median(seconds for _, _, seconds in steps) * 1000
    return f"batch {batch_size}: device busy for {busy:.2f} ms a step, then {gap:.3f} ms to the next; launched by the host in {host:.2f} ms"


if __name__ == "__main__":
    main()
