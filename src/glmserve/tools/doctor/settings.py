"""Flags of `glmserve doctor`.  Spelled and checked as the server's own are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from glmserve.config import Given, Settings

DEFAULT_TARGET = "http://localhost:8000"


class DoctorConfig(Settings):
    """Examination"""

    checks: str | None = Field(None, description="Names of the checks to make, with commas between. Default: all that apply.")
    quick: bool = Field(False, description="Send less and wait less: usually a few to 30 s in place of up to a minute.")
    api_key: str | None = Field(None, description="Key, for a server that asks for one.")
    gpu: int | None = Field(
        None,
        ge=0,
        description="Number of the GPU the server uses. Default: the one a glmserve names, else the one with the fullest memory.",
    )
    timeout: float = Field(30.0, gt=0, description="Seconds until a message is given up.")


def load_doctor_settings(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> DoctorConfig:
    """Settings of `glmserve doctor`: flags, and the key from GLMSERVE_API_KEY.  Raises SettingsError.

    Other variables are those of the server on this machine, which need not be the one that is examined.
    """
    key = (os.environ if environ is None else environ).get("GLMSERVE_API_KEY", "").split(",")[0]
    return Given(flags, (DoctorConfig,), None, {"GLMSERVE_API_KEY": key}).read(DoctorConfig)
