"""The recorded cases of the original model, and an engine that runs them.  Shared by CPU and GPU tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glmserve.config import EngineConfig
from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner.input_batch import prefill_arrays, prefill_inputs
from glmserve.scheduler.batch import PrefillChunk
from glmserve.scheduler.request import Request

SMALL_MODELS = ("small", "wide", "small_untied", "realvocab")
PTUNING_MODELS = ("small_ptuning_plain", "small_ptuning_proj")
QUANTIZED_MODELS = ("quant_int8", "quant_int4", "quant_int4_qe")
HALF_PRECISION_BAR = {"float16": 2e-3, "bfloat16": 1e-2}  # relative error of the logits


@dataclass(frozen=True)
class GoldenCase:
    """One recorded prompt and what the original computed for it."""

    name: str
    prompt: list[int]
    greedy_tokens: list[int]
    stop_token_ids: list[int]
    data: dict[str, np.ndarray]

    @property
    def is_long(self) -> bool:
        return len(self.prompt) > 300


def read_cases(folder: Path) -> list[GoldenCase]:
    """All cases of one recorded model."""
    cases = []
    for path in sorted((folder / "cases").glob("*.npz")):
        data = dict(np.load(path))
        stop = [int(data["eos_override"])] if "eos_override" in data else []
        cases.append(GoldenCase(path.stem, data["input_ids"].tolist(), data["greedy_tokens"].tolist(), stop, data))
    assert cases, f"no cases in {folder}"
    return cases


def generate(engine: EngineCore, cases: list[GoldenCase], **params: object) -> dict[str, list[int]]:
    """Greedy tokens of all cases, handed in at once."""
    for case in cases:
        wanted = SamplingParams(temperature=0.0, max_tokens=len(case.greedy_tokens), stop_token_ids=case.stop_token_ids, **params)  # type: ignore[arg-type]
        engine.add_request(EngineRequest(case.name, case.prompt, wanted, time.monotonic()))
    tokens: dict[str, list[int]] = {case.name: [] for case in cases}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] += output.new_token_ids
    return tokens


class LogitRecorder:
    """Keeps the raw logits of each sampled step of each request while an engine runs."""

    def __init__(self, engine: EngineCore) -> None:
        self.logits: dict[str, list[np.ndarray]] = {}
        sampler, original = engine.runner.sampler, engine.runner.sampler.sample

        def sample(logits: torch.Tensor, requests: list) -> object:  # type: ignore[type-arg]
            for row, request in enumerate(requests):
                self.logits.setdefault(request.request_id, []).append(logits[row].float().cpu().numpy().copy())
            return original(logits, requests)

        sampler.sample = sample  # type: ignore[method-assign,assignment]


def recorded_logits(case: GoldenCase) -> tuple[np.ndarray, np.ndarray]:
    """(ids, logits) of each greedy step; ids is all of the vocabulary but for the case with 64 kept logits a step."""
    if "greedy_logits" in case.data:
        logits = case.data["greedy_logits"]
        return np.broadcast_to(np.arange(logits.shape[1]), logits.shape), logits
    return case.data["greedy_top64_ids"], case.data["greedy_top64_logits"]


def first_step_errors(engine: EngineCore, cases: list[GoldenCase]) -> list[float]:
    """||logits - original|| / ||original|| of each case's first sampled step; the original computed in float32."""
    recorder, errors = LogitRecorder(engine), []
    for case in cases:
        generate(engine, [case])
        ids, expected = recorded_logits(case)
        first = np.take_along_axis(recorder.logits[case.name][0][None], ids[:1], 1)
        errors.append(float(np.linalg.norm(first - expected[:1]) / np.linalg.norm(expected[:1])))
    return errors


def make_engine(folder: Path, **settings: object) -> EngineCore:
    """An engine on a recorded model."""
    return EngineCore(EngineConfig(model=str(folder), **settings))  # type: ignore[arg-type]


@torch.inference_mode()
def all_logits(engine: EngineCore, prompt: list[int]) -> np.ndarray:
    """Scores after every token, [len(prompt), vocab_size]: the context and all that follows in one chunk.  On a CPU."""
    runner, message = engine.runner, EngineRequest("all", prompt, SamplingParams(), 0.0)
    request = Request(message, engine.spec, engine.max_model_len, seed=0)
    request.block_ids = list(range(1, 2 + len(prompt) // runner.pool.block_size))
    chunks = [PrefillChunk(request, 0, len(prompt))]
    inputs = prefill_inputs(prefill_arrays(chunks, runner.pool.block_size, runner.axes), runner.model.rotary, runner.device)
    return runner.model.logits(runner.model(inputs.token_ids, inputs.metadata, runner.pool.caches)).numpy()
