"""What a server needs is compiled before it is ready: a kernel compiled later keeps every stream waiting for a second."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import make_engine
from tests.models.tiny import FIXTURES

triton = pytest.importorskip("triton")
RNG = random.Random(3)


@pytest.fixture(scope="module")
def engine() -> EngineCore:
    return make_engine(FIXTURES / "chatglm-tiny", device="cuda", dtype="float16", max_num_seqs=128)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names = list[str]()

    def note(**told: Any) -> None:
        names.append(str(told["repr"]))

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", note)
    yield names


@pytest.mark.parametrize("together", [1, 2, 3, 5, 6, 9, 16, 17, 33, 65, 100, 128])
def test_no_kernel_is_compiled_for_a_batch(engine: EngineCore, compiled: list[str], together: int) -> None:
    for number in range(together):
        prompt = [*RNG.choices(range(5, 85), k=RNG.randint(3, 20)), 91, 94]
        sampling: dict[str, Any] = RNG.choice(
            [{"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 5}, {"top_p": 0.8, "repetition_penalty": 1.2}]
        )
        params = SamplingParams(max_tokens=4, ignore_eos=True, **sampling)
        engine.add_request(EngineRequest(f"{together}-{number}", prompt, params, time.monotonic()))
    while engine.has_unfinished_requests():
        engine.step()
    torch.cuda.synchronize()
    assert not compiled
