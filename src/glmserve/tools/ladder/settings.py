"""Flags of `glmserve bench ladder` and what they may be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from glmserve.config import EngineConfig, Given, Settings, flag_name
from glmserve.protocol.errors import SettingsError
from glmserve.tools.bench.settings import ServeBenchConfig
from glmserve.tools.ladder.rungs import RUNGS, Rung

SUFFIXES = (".md", ".json", ".png", ".html")


class LadderConfig(Settings):
    """Ladder"""

    rungs: str = Field("0-5", description="Which to climb, as 0-3 or 0,3,4.")
    concurrency: int = Field(8, ge=1, description="Clients; each sends its next request when it has its answer.")
    duration: float = Field(30.0, gt=0, description="Most seconds of load on a rung.")
    num_prompts: int = Field(1000, ge=1, description="Most requests on a rung.")
    input_len: int = Field(32, ge=1, description="Tokens of a prompt, on average.")
    output_len: int = Field(32, ge=1, description="Tokens of an answer, on average.")
    range_ratio: float = Field(0.5, ge=0, lt=1, description="0.5 draws both lengths from half to one and a half times theirs.")
    price_per_hour: float = Field(1.0, gt=0, description="Price of this machine, in whatever currency, for the cost of requests.")
    token_ids: str | None = Field(None, description="Prompts are random token ids from LOW:HIGH. Default: ids of words, or 1000:30000.")
    prompt_suffix_ids: str | None = Field(
        None, description="Ids that end each prompt where there is no tokenizer, as 130001,130004 for ChatGLM-6B."
    )
    output: tuple[str, ...] = Field((), description="File to write: .md, .json, .png or .html; may be repeated.")
    start_timeout: float = Field(1800.0, gt=0, description="How many seconds a model may take to load.")

    @property
    def chosen(self) -> list[Rung]:
        """The rungs to climb, from the lowest."""
        return [RUNGS[number] for number in sorted(_numbers(self.rungs))]

    @property
    def paths(self) -> list[Path]:
        """The files to write."""
        return [Path(name) for name in self.output]

    def load_on(self, base_url: str, warmups: int) -> ServeBenchConfig:
        """The load of a rung, in the words of `bench serve`."""
        return ServeBenchConfig(
            base_url=base_url,
            num_prompts=self.num_prompts,
            random_input_len=self.input_len,
            random_output_len=self.output_len,
            random_range_ratio=self.range_ratio,
            max_concurrency=self.concurrency,
            duration=self.duration,
            num_warmups=warmups,
            ignore_eos=True,
            token_ids=self.token_ids,
            prompt_suffix_ids=self.prompt_suffix_ids,
            metric_percentiles="50,99",
        )

    @field_validator("rungs")
    @classmethod
    def _are_rungs(cls, value: str) -> str:
        if not (numbers := _numbers(value)) or not numbers <= RUNGS.keys():
            raise SettingsError(f"--rungs cannot be {value!r}: it takes numbers from 0 to {max(RUNGS)}, as 0-3 or 0,3,4.")
        return value

    @field_validator("token_ids", "prompt_suffix_ids")
    @classmethod
    def _as_in_bench_serve(cls, value: str | None, info: ValidationInfo) -> str | None:
        ServeBenchConfig(**{str(info.field_name): value})  # raises what is raised there
        return value

    @field_validator("output", mode="before")
    @classmethod
    def _have_known_endings(cls, value: Any) -> Any:
        if strangers := [name for name in value if Path(name).suffix not in SUFFIXES]:
            raise SettingsError(f"--output cannot be {strangers[0]}: its name ends in one of {', '.join(SUFFIXES)}.")
        return value


def load_ladder_settings(model: str, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> tuple[LadderConfig, list[str]]:
    """Settings of `bench ladder`, and the flags that each rung's server gets.  Raises SettingsError, also for those of the servers."""
    variables = os.environ if environ is None else environ
    for_servers = {name: value for name, value in flags.items() if name in EngineConfig.model_fields}
    Given({"model": model, **for_servers}, (EngineConfig,), None, variables).read(EngineConfig)
    own = {name: value for name, value in flags.items() if name in LadderConfig.model_fields}
    arguments = [text for name, value in for_servers.items() for text in _flag(name, value)]
    return Given(own, (LadderConfig,), None, {}).read(LadderConfig), arguments


def _flag(name: str, value: Any) -> list[str]:
    """A flag as a command line has it; none where it was not given."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag_name(name if value else f"no_{name}")]
    return [flag_name(name), str(value)]


def _numbers(text: str) -> set[int]:
    """ "0-2,4" -> {0, 1, 2, 4}; none where that is no list of numbers."""
    numbers: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isdecimal() and (high.isdecimal() or not dash)):
            return set()
        numbers |= set(range(int(low), int(high if dash else low) + 1))
    return numbers
