"""Flags of `glmserve slow`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from glmserve.config import Given, Settings

_UNITS = {"ms": 0.001, "min": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class SlowConfig(Settings):
    """What to list"""

    over: float = Field(2.0, ge=0, description="Shortest time of a request to list, as 2, 2s, 500ms, 1m or 1h.")
    last: int = Field(10, ge=1, le=1000, description="Most requests to list, the newest first.")
    json_output: bool = Field(False, description="Print JSON, for programs.")
    api_key: str | None = Field(None, description="Key, for a server that asks for one.")

    @field_validator("over", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        if isinstance(value, str):
            for unit, seconds in _UNITS.items():
                number = value.strip().removesuffix(unit)
                if number != value.strip():
                    return float(number) * seconds
        return value


def load_slow_settings(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> SlowConfig:
    """Flags, and the key from GLMSERVE_API_KEY.  Raises SettingsError."""
    key = (os.environ if environ is None else environ).get("GLMSERVE_API_KEY", "").split(",")[0]
    return Given(flags, (SlowConfig,), None, {"GLMSERVE_API_KEY": key}).read(SlowConfig)
