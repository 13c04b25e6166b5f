"""What a server needs is compiled before it is ready: a kernel compiled later keeps every stream waiting for a second."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import make_engine
from tests.models.tiny import FIXTURES

triton = pytest.importorskip("triton")
CONFIG = Path(__file__).parents[2] / "benchmarks/chatglm-6b/config.json"


ENGINES = ["chatglm-tiny 128", "chatglm-tiny 48", "chatglm-tiny 20", "llama-tiny 128", "wide bf16 128", "wide fp8 128", "wide fp8 160"]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    """`wide`: two layers of ChatGLM-6B's width, for which there are kernels of their own."""
    name, *form, max_num_seqs = request.param.split()
    if not form:
        return make_engine(FIXTURES / name, device="cuda", dtype="float16", max_num_seqs=int(max_num_seqs), num_kv_blocks=4000)
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(json.loads(CONFIG.read_text()) | {"num_layers": 2}))
    settings = {"max_num_seqs": int(max_num_seqs), "num_kv_blocks": 4000, "load_format": "dummy", "skip_tokenizer_init": True}
    settings |= {"quantization": "fp8", "kv_cache_dtype": "fp8"} if form == ["fp8"] else {}
    return make_engine(folder, device="cuda", dtype="bfloat16", **settings)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names = list[str]()

    def note(**told: Any) -> None:
        names.append(str(told["repr"]))

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", note)
    yield names


@pytest.mark.parametrize("together", [1, 2, 3, 5, 6, 9, 16, 17, 33, 48, 65, 100, 128, 150])
def test_no_kernel_is_compiled_for_a_batch(engine: EngineCore, compiled: list[str], together: int) -> None:
    rng = random.Random(together)
    prompts = [rng.choices(range(5, 85), k=rng.randint(3, 40)) for _ in range(together)]
    run(engine, prompts, rng)
    run(engine, [[*prompt, 7, 8, 9] for prompt in prompts], rng)  # a causal model finds the beginning in its cache
    assert not compiled


def test_no_kernel_is_compiled_for_long_prompts(engine: EngineCore, compiled: list[str]) -> None:
    rng = random.Random(1)
    for lengths in ([700], [1900], [300, 300, 900, 40], [520] * 12, [64] * 40):
        run(engine, [rng.choices(range(5, 85), k=min(length, engine.max_model_len - 40)) for length in lengths], rng)
    assert not compiled


def run(engine: EngineCore, prompts: list[list[int]], rng: random.Random) -> None:
    spec = engine.spec
    end = [spec.gmask_token_id, spec.bos_token_id] if spec.attention == "prefix" else []
    for number, prompt in enumerate(prompts):
        sampling: dict[str, Any] = rng.choice(
            [
                {"temperature": 0.0},
                {"top_p": 0.7},
                {"top_k": 5},
                {"top_p": 0.8, "repetition_penalty": 1.2},
                {"top_k": 50, "repetition_penalty": 1.2},
                {"top_k": 70},
            ]
        )
        params = SamplingParams(max_tokens=20, ignore_eos=True, **sampling)
        engine.add_request(EngineRequest(f"{len(prompts)}-{number}-{rng.random()}", prompt + end, params, time.monotonic()))
    while engine.has_unfinished_requests():
        engine.step()
    torch.cuda.synchronize()
