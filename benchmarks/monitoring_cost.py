"""What watching costs: the engine's accounting a step, set beside the step; and runs with and without it, in turns.

    python benchmarks/monitoring_cost.py [--model FOLDER] [--device cuda] [--dtype bfloat16] [--batches 1,64,256]

Random weights, prompts of 128 tokens, answers of --output-len, greedy, the end token ignored.  The part of the HTTP process (a step's
statistics taken in, a request's line written) is measured apart, since it runs beside the engine and not in its loop.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from glmserve import LLM, SamplingParams
from glmserve.engine.core import EngineCore
from glmserve.engine.device_time import Idle
from glmserve.observe.http_work import HttpWork
from glmserve.observe.request_log import RequestLog
from glmserve.observe.request_record import ChoiceRecord, RequestRecord
from glmserve.protocol.messages import EngineRequest, FinishReason
from glmserve.protocol.stats import EngineStats
from glmserve.runner.step_clock import StepClock, StepMarks, StepTime
from glmserve.scheduler.batch import ScheduledBatch
from glmserve.scheduler.request import Request

INPUT_LEN = 128
ROUNDS = 5
REPEATS = 3000


class BareClock(StepClock):
    """Marks the end of a step, which the host waits for anyway, and nothing else."""

    def begin(self) -> StepMarks:
        return StepMarks(0.0, None)

    def begin_sampling(self, marks: StepMarks) -> None:
        pass

    def read(self, marks: StepMarks) -> StepTime:
        self._marker.recycle(marks.end)
        return StepTime(0.0, 0.0, 0.0, 0.0)


class WithoutAccount:
    """Within the block the engine counts neither its device's time nor its steps' sizes."""

    def __init__(self, engine: EngineCore) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        engine, nothing = self._engine, lambda *_, **__: None
        self._clock, engine.runner.clock = engine.runner.clock, BareClock(engine.runner.clock._marker)
        engine.account.launched = nothing  # type: ignore[method-assign]
        engine.account.device.step = engine.account.device.note = nothing  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        engine = self._engine
        engine.runner.clock = self._clock
        self._clock.restart()
        del engine.account.launched, engine.account.device.step, engine.account.device.note  # the class' own are back


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tokenizer"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--output-len", type=int, default=64)
    options = parser.parse_args()
    plain = {"load_format": "dummy", "skip_tokenizer_init": True, "enable_prefix_caching": False}  # no run may profit from the one before
    llm = LLM(model=options.model, device=options.device, dtype=options.dtype, **plain)
    print(f"{llm.engine.ready.device_name}, {options.model}\n\n| batch | accounting us a step | step ms | share | tok/s with | without |")
    print("|---|---|---|---|---|---|")
    for size in map(int, options.batches.split(",")):
        print(row(llm, size, options.output_len), flush=True)
    print("\n" + "\n".join(http_side()))


def row(llm: LLM, size: int, output_len: int) -> str:
    """One line of the table; with and without take turns, and the medians are set side by side."""
    run(llm, size, output_len, 0)  # compiles and captures
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(ROUNDS):
        for counts in ((True, False), (False, True))[round_ % 2]:
            with nullcontext() if counts else WithoutAccount(llm.engine):
                seconds[counts].append(run(llm, size, output_len, round_))
    counted, bare = (statistics.median(seconds[which]) for which in (True, False))
    micros, step = accounting_micros(llm.engine, size), bare / output_len
    rate = size * output_len
    return f"| {size} | {micros:.1f} | {step * 1e3:.2f} | {micros / 1e6 / step:.2%} | {rate / counted:,.0f} | {rate / bare:,.0f} |"


def run(llm: LLM, size: int, output_len: int, seed: int) -> float:
    """Seconds from handing in `size` prompts to the last token."""
    rng, spec = random.Random(f"{seed} {size}"), llm.spec
    suffix = [spec.gmask_token_id, spec.bos_token_id] if spec.attention == "prefix" else []
    high = min(spec.vocab_size, spec.gmask_token_id or spec.vocab_size, 60000)
    prompts = [{"prompt_token_ids": [*rng.choices(range(10, high), k=INPUT_LEN - 2), *suffix]} for _ in range(size)]
    started = time.perf_counter()
    llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True), use_tqdm=False)  # type: ignore[arg-type]
    return time.perf_counter() - started


def accounting_micros(engine: EngineCore, size: int) -> float:
    """Microseconds of the host for all that is counted of one decode step."""
    clock, account = engine.runner.clock, engine.account
    prompt = [5] * (INPUT_LEN - 2) + [engine.spec.gmask_token_id or 5, engine.spec.bos_token_id or 5]
    message = EngineRequest("x", prompt, SamplingParams(max_tokens=4), 0.0)
    batch = ScheduledBatch(requests=[Request(message, engine.spec, engine.max_model_len, 0) for _ in range(size)])
    clock.restart()
    launched: deque[StepMarks] = deque()

    def launch() -> None:
        launched.append(marks := clock.begin())
        clock.begin_sampling(marks)
        clock.end(marks)
        account.launched(batch)

    def read() -> None:
        account.device.step(*clock.read(launched.popleft()), collected=time.monotonic(), is_prefill=False)
        account.device.note(Idle.SCHEDULING, time.monotonic())
        account.refresh(None)

    launching = mean_micros(launch)
    if engine.runner.on_gpu:
        torch.cuda.synchronize()  # events are read once the device has passed them, as in the engine
    return launching + mean_micros(read)


def http_side() -> list[str]:
    """Lines on what the HTTP process does for watching."""
    work = HttpWork()
    stats = EngineStats()
    heard = mean_micros(lambda: work.hear(stats.gpu_time_seconds, [], time.monotonic()))
    log = RequestLog(io.StringIO())
    record = RequestRecord("r", 200, 128, 0, 1.0, 0.1, [ChoiceRecord(FinishReason.STOP, 64, 0.1, 0.1, 0.8)])
    written = mean_micros(lambda: log.write(record))
    return [f"HTTP process: {heard:.1f} us a step for its statistics, {written:.1f} us a request for its line"]


def mean_micros(work: Callable[[], object]) -> float:
    """Of one call in many."""
    for _ in range(REPEATS // 10):
        work()
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - started) / REPEATS * 1e6


if __name__ == "__main__":
    main()
