"""The engine's account of a real GPU's time, held against a second measure of the same run."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
import torch

from glmserve.engine.core import EngineCore
from glmserve.observe.gpu import GpuSampler
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import make_engine
from tests.models.tiny import FIXTURES

RNG = random.Random(1)


@pytest.fixture(scope="module")
def engine() -> EngineCore:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cuda", dtype="float32")
    answer(engine, 16)  # compiles and captures
    return engine


def answer(engine: EngineCore, max_tokens: int) -> None:
    for _ in range(4):
        prompt = [*RNG.choices(range(5, 85), k=12), 91, 94]  # new ones each time, or the context would be found again
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        engine.add_request(EngineRequest(str(RNG.random()), prompt, params, time.monotonic()))
    while engine.has_unfinished_requests():
        engine.step()


def parts(engine: EngineCore) -> dict[str, float]:
    return msgspec.structs.asdict(engine.stats().gpu_time_seconds)


def test_the_parts_sum_to_wall_time_and_work_to_what_events_say(engine: EngineCore) -> None:
    before, started = parts(engine), time.monotonic()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    answer(engine, 200)
    last.record()
    last.synchronize()
    after, elapsed = parts(engine), time.monotonic() - started
    spent = {name: after[name] - before[name] for name in after}
    assert sum(spent.values()) == pytest.approx(elapsed, rel=0.02, abs=0.005)
    assert all(seconds >= 0 for seconds in spent.values())
    whole = first.elapsed_time(last) / 1000
    busy = spent["prefill"] + spent["decode"] + spent["sampling"]
    assert spent["decode"] > 0 and spent["sampling"] > 0 and spent["prefill"] > 0
    assert busy + spent["idle_scheduling"] == pytest.approx(whole, rel=0.05, abs=0.005)


def test_a_pause_is_time_without_work(engine: EngineCore) -> None:
    before = parts(engine)
    time.sleep(0.3)
    answer(engine, 4)
    assert parts(engine)["idle_no_work"] - before["idle_no_work"] == pytest.approx(0.3, abs=0.05)


def test_what_the_device_can_do_was_measured(engine: EngineCore) -> None:
    assert engine.ready.device_peak_bytes_per_second > 1e11
    assert engine.ready.device_peak_flops_per_second > 1e12


def test_nvml_knows_the_engine_s_gpu(engine: EngineCore) -> None:
    sampler = GpuSampler(lambda: engine.ready.device_uuid)
    sampler.look()
    assert sampler.latest is not None and (sampler.latest.nvml_memory_used_bytes or 0) > 0
