"""`layer_stream` on a GPU: against its twin, launch after launch, and in a whole model against the kernels of their own."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from glmserve.engine import memory
from glmserve.engine.core import EngineCore
from glmserve.kernels import layer_stream
from glmserve.models.chatglm import model
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import make_engine
from tests.kernels.cases import TOLERANCE, Device, relative_error
from tests.kernels.stream_cases import random_rows, random_stretch

CONFIG = Path(__file__).parents[2] / "benchmarks/chatglm-6b/config.json"
FORMS = [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, True)]
pytestmark = pytest.mark.parametrize("dtype,fp8", FORMS, ids=["float16", "bfloat16", "fp8 and bfloat16", "fp8 and float16"])


@pytest.fixture(autouse=True)
def served() -> None:
    rows, dense = (torch.empty(count, 4096, dtype=torch.float16, device="cuda") for count in (2, 4096))
    if not layer_stream.serves_layer_stream(rows, dense, 16384):
        pytest.skip("this GPU or this Triton is not served")


def test_it_is_its_twin_every_time(dtype: torch.dtype, fp8: bool) -> None:
    on = Device("cuda", dtype, seed=5)
    layer = random_stretch(on, 4096, 16384, fp8)
    for rows in (1, 2, 3, 8, 9, 16, 17, 32, 33, 63, 64):
        mixed, residual = random_rows(on, rows, 4096, fp8)
        poison = torch.full((256 * 1024 * 1024,), float("nan"), device="cuda")
        del poison  # whatever is allocated now begins as NaN
        first = layer_stream.layer_stream(mixed, residual, layer)
        for out, twin in zip(first, layer_stream.layer_stream_torch(mixed, residual, layer), strict=True):
            assert not out.isnan().any()
            assert relative_error(out, twin) < (0.02 if fp8 else TOLERANCE[dtype]), rows  # fp8: a level may differ in each step
        for turn in range(50):
            again = layer_stream.layer_stream(mixed, residual, layer)
            assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
            if turn % 5 == 0:  # the last layer's ends earlier, and meets at the same counters
                qkv, end = layer_stream.layer_stream(mixed, residual, layer._replace(qkv=None))
                assert qkv is None and torch.equal(end, first[1])


@torch.inference_mode()  # in which an engine may have made the counters
def test_its_counters_may_overflow(dtype: torch.dtype, fp8: bool) -> None:
    on = Device("cuda", dtype, seed=6)
    layer, (mixed, residual) = random_stretch(on, 4096, 16384, fp8), random_rows(on, 5, 4096, fp8)
    expected = layer_stream.layer_stream(mixed, residual, layer)
    for count in (2**31 - 256, -256):
        layer_stream._meetings(residual.device).fill_(count)
        for _ in range(4):
            assert torch.equal(layer_stream.layer_stream(mixed, residual, layer)[0], expected[0])


def test_a_model_says_what_it_says_without(dtype: torch.dtype, fp8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three layers of ChatGLM-6B's width, decode steps of 1, 6 and 40 rows: log probabilities of the sampled tokens."""
    monkeypatch.setattr(memory, "_FIRST_QKV_SHARE", 0.0)  # else one engine may have the table and one not, by what other tests leave free
    (tmp_path / "config.json").write_text(json.dumps(json.loads(CONFIG.read_text()) | {"num_layers": 3}))
    settings = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": str(dtype).removeprefix("torch."), "device": "cuda",
                "num_kv_blocks": 600, "max_num_seqs": 40, **({"quantization": "fp8"} if fp8 else {})}  # fmt: skip
    launches = []
    stream = model.layer_stream
    monkeypatch.setattr(model, "layer_stream", lambda *given: launches.append(len(given[1])) or stream(*given))
    with_it = logprobs(make_engine(tmp_path, **settings))
    assert {1, 8, 40} <= set(launches)
    monkeypatch.setattr(model, "serves_layer_stream", lambda *_: False)
    without = logprobs(make_engine(tmp_path, **settings))
    assert (with_it - without).norm() < (0.1 if fp8 else 0.02) * (without - without.mean()).norm()


def logprobs(engine: EngineCore) -> torch.Tensor:
    """Of the second token of each request: the first decode step, whose input is the same in both runs."""
    told = list[float]()
    for count in (1, 6, 40):
        for row in range(count):
            prompt = [7 + row, 100 + 3 * row, 5, 130001, 130004]
            params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, logprobs=0, logit_bias={9: 100.0})
            engine.add_request(EngineRequest(f"{count}-{row}", prompt, params, time.monotonic()))
        answers: dict[str, list[float]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                for entry in output.logprobs or []:
                    answers.setdefault(output.request_id, []).append(entry.logprobs[0])
        told += [values[1] for _, values in sorted(answers.items())]
    return torch.tensor(told)
