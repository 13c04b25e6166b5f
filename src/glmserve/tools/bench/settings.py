"""Flags of `glmserve bench`, named as in vLLM's bench, and what they may be.  Spelled and checked as the server's own are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from glmserve.config import EngineConfig, Given, Settings
from glmserve.protocol.errors import SettingsError

METRICS = ("ttft", "tpot", "itl", "e2el")
DEFAULT_IDS = "1000:30000"  # of prompts, where nobody tells which ids a model has


class TargetSettings(Settings):
    """Server"""

    base_url: str = Field("http://localhost:8000", description="Server to load, as http://HOST:PORT.")
    backend: Literal["openai", "openai-chat", "chatglm"] = Field(
        "openai",
        description="Protocol: /v1/completions with token ids, /v1/chat/completions, or ChatGLM-6B's own POST / (not streamed: no TTFT).",
    )
    endpoint: str | None = Field(None, description="Path to send to. Default: the protocol's.")
    model: str | None = Field(None, description="Model to ask for. Default: the first one the server names.")
    api_key: str | None = Field(None, description="Key, for a server that asks for one.")
    request_timeout: float = Field(600.0, gt=0, description="Seconds until a request is given up.")

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise SettingsError(f"--base-url cannot be {value!r}: it begins with http:// or https://.")
        return value.rstrip("/")


class RequestSettings(Settings):
    """Requests"""

    num_prompts: int = Field(1000, ge=1, description="Requests in all.")
    random_input_len: int = Field(1024, ge=1, description="Tokens of a prompt: exact with openai, about so many with the others.")
    random_output_len: int = Field(128, ge=1, description="Most tokens of an answer.")
    random_range_ratio: float = Field(0.0, ge=0, lt=1, description="0.5 draws both lengths from half to one and a half times theirs.")
    ignore_eos: bool = Field(False, description="Ask for answers of full length.")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token.")
    seed: int = Field(0, description="Of prompts and pauses. Use another one where the server may keep the prompts of the last run.")
    token_ids: str | None = Field(
        None, description="Prompts are random token ids from LOW to below HIGH. Default: ids of words, or 1000:30000."
    )
    prompt_suffix_ids: str | None = Field(
        None, description="Ids that end each prompt, as 130001,130004 for ChatGLM-6B. Default: what the server's /tokenize adds."
    )

    @property
    def token_id_range(self) -> range | None:
        """The ids to draw from, where they are given."""
        if self.token_ids is None:
            return None
        low, high = self.token_ids.split(":")
        return range(int(low), int(high))

    @field_validator("token_ids")
    @classmethod
    def _is_a_range(cls, value: str | None) -> str | None:
        low, _, high = (value or DEFAULT_IDS).partition(":")
        if not (low.isdigit() and high.isdigit() and int(low) < int(high)):
            raise SettingsError(f"--token-ids cannot be {value!r}: it takes LOW:HIGH, as {DEFAULT_IDS}.")
        return value

    @field_validator("prompt_suffix_ids")
    @classmethod
    def _are_ids(cls, value: str | None) -> str | None:
        if value and not all(part.strip().isdigit() for part in value.split(",")):
            raise SettingsError(f"--prompt-suffix-ids cannot be {value!r}: it takes whole numbers with commas between.")
        return value


class LoadSettings(Settings):
    """Load"""

    request_rate: float = Field(math.inf, gt=0, description="Requests a second, at random moments (Poisson). inf sends all at once.")
    burstiness: float = Field(1.0, gt=0, description="1 is Poisson; below 1 requests come in bursts, above 1 more evenly.")
    max_concurrency: int | None = Field(None, ge=1, description="Most requests at a time; the next one waits for an answer.")
    duration: float | None = Field(
        None, gt=0, description="Seconds after which the run ends; what is under way then does not count. Default: until all is answered."
    )
    num_warmups: int = Field(1, ge=0, description="Requests before the clock starts.")
    num_workers: int = Field(1, ge=1, le=64, description="Client processes. One carries tens of thousands of tokens a second.")


class ReportSettings(Settings):
    """Report"""

    goodput: tuple[str, ...] = Field((), description="Limits in ms, as ttft:200 tpot:50 (also e2el): counts the requests that met all.")
    percentile_metrics: str = Field("ttft,tpot,itl,e2el", description="Times to report.")
    metric_percentiles: str = Field("50,90,99", description="Percentiles to report.")
    save_result: Path | None = Field(None, description="JSON file to write, with vLLM's names.")
    save_detailed: bool = Field(False, description="Also each request's figures.")
    disable_tqdm: bool = Field(False, description="No progress bar.")

    @property
    def limits(self) -> dict[str, float]:
        """Goodput's limits: metric -> milliseconds."""
        return {name: float(limit) for name, _, limit in (entry.partition(":") for entry in self.goodput)}

    @property
    def metrics(self) -> list[str]:
        """The times to report."""
        return self.percentile_metrics.split(",")

    @property
    def percentiles(self) -> list[float]:
        """The percentiles to report."""
        return [float(part) for part in self.metric_percentiles.split(",")]

    @field_validator("goodput", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part for entry in value for part in str(entry).replace(",", " ").split())

    @model_validator(mode="after")
    def _check(self) -> ReportSettings:
        """Raises SettingsError."""
        for entry in self.goodput:
            name, _, limit = entry.partition(":")
            if name not in ("ttft", "tpot", "e2el") or not _is_positive(limit):
                raise SettingsError(f"--goodput takes limits in milliseconds such as ttft:200, tpot:50 or e2el:5000, not {entry!r}.")
        if strangers := set(self.metrics) - set(METRICS):
            raise SettingsError(
                f"--percentile-metrics takes {', '.join(METRICS)} with commas between, not {', '.join(sorted(strangers))!r}."
            )
        if not all(_is_positive(part) and float(part) <= 100 for part in self.metric_percentiles.split(",")):
            raise SettingsError(f"--metric-percentiles takes numbers up to 100 such as 50,90,99, not {self.metric_percentiles!r}.")
        return self


class ServeBenchConfig(ReportSettings, LoadSettings, RequestSettings, TargetSettings):  # the last base's fields come first
    """Settings of `glmserve bench serve`."""


class OfflineRunSettings(Settings):
    """Workload"""

    input_len: int = Field(128, ge=2, description="Tokens of a prompt.")
    output_len: int = Field(256, ge=1, description="Tokens of an answer.")
    output_json: Path | None = Field(None, description="JSON file to write.")


class ThroughputConfig(OfflineRunSettings):
    """Workload of `bench throughput`"""

    num_prompts: int = Field(256, ge=1, description="Prompts, handed in all at once.")
    num_iters: int = Field(2, ge=1, description="Runs of a workload; the best one counts.")
    workloads: Path | None = Field(None, description="JSON file of several workloads, in place of the lengths and number here.")
    only: str | None = Field(None, description="Names of the file's workloads to run, with commas between. Default: all.")


class LatencyConfig(OfflineRunSettings):
    """Workload of `bench latency`"""

    batch_size: int = Field(8, ge=1, description="Prompts answered together.")
    num_iters_warmup: int = Field(2, ge=0, description="Runs that are not counted.")
    num_iters: int = Field(10, ge=1, description="Runs that are counted.")


def load_serve_bench_settings(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ServeBenchConfig:
    """Settings of `bench serve`: flags, and the key from GLMSERVE_API_KEY.  Raises SettingsError.

    Other variables are those of the server on this machine, which need not be the one that is loaded.
    """
    key = (os.environ if environ is None else environ).get("GLMSERVE_API_KEY", "").split(",")[0]
    return Given(flags, (ServeBenchConfig,), None, {"GLMSERVE_API_KEY": key}).read(ServeBenchConfig)


def load_engine_bench_settings(
    flags: Mapping[str, Any], kind: type[ThroughputConfig] | type[LatencyConfig]
) -> tuple[EngineConfig, ThroughputConfig | LatencyConfig]:
    """Settings of `bench throughput` and `bench latency`.  Raises SettingsError."""
    given = Given(flags, (EngineConfig, kind), None, os.environ)
    return given.read(EngineConfig), given.read(kind)


def _is_positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
