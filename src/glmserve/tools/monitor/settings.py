"""Flags of `glmserve monitor` and what they may be.  Spelled and checked as the server's own are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from glmserve.config import Given, Settings
from glmserve.protocol.errors import SettingsError

HERE = "http://localhost:8000"
PAGE_SECONDS, ONCE_SECONDS, LOG_SECONDS = 2.0, 5.0, 60.0

ReadyMade = Literal["alert-rules", "prometheus-rules", "grafana-dashboard"]


class WatchedSettings(Settings):
    """Watching"""

    interval: float | None = Field(
        None, ge=0.2, description="Seconds between two looks. Default: 2 on the page, 60 with --log; with --once the 5 that it measures."
    )
    api_key: str | None = Field(None, description="Key, for a server that asks for one before it tells its slow requests.")
    slow_over: float = Field(2.0, ge=0, description="Seconds from which a request is slow.")


class LineSettings(Settings):
    """Lines in place of the page"""

    once: bool = Field(False, description="Print one line a server and end, for cron.")
    log: str | None = Field(None, description="Append a line a server to this file at each interval; - is the terminal.")


class RuleSettings(Settings):
    """Alerts"""

    alert_rules: Path | None = Field(None, description="YAML file of alert rules to judge while watching.")
    check_rules: Path | None = Field(None, description="Check an alert rules file and end; with a URL, show what each rule reads there.")
    show: ReadyMade | None = Field(None, description="Print a ready-made file and end.")


class MonitorConfig(RuleSettings, LineSettings, WatchedSettings):
    """Settings of `glmserve monitor`."""

    @model_validator(mode="after")
    def _one_thing_at_a_time(self) -> MonitorConfig:
        """Raises SettingsError."""
        asked = [f"--{name.replace('_', '-')}" for name in ("once", "log", "check_rules", "show") if getattr(self, name)]
        if len(asked) > 1:
            raise SettingsError(f"{' and '.join(asked)} do not go together: choose one.")
        return self


def load_monitor_settings(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> MonitorConfig:
    """Flags, and the key from GLMSERVE_API_KEY.  Raises SettingsError.

    Other variables are those of the server on this machine, which need not be the one that is watched.
    """
    key = (os.environ if environ is None else environ).get("GLMSERVE_API_KEY", "").split(",")[0]
    return Given(flags, (MonitorConfig,), None, {"GLMSERVE_API_KEY": key}).read(MonitorConfig)


def server_urls(given: Sequence[str]) -> list[str]:
    """The servers to watch, whole: `box:8000` becomes http://box:8000, none becomes the one on this machine.  Raises SettingsError."""
    return [_whole(url) for url in dict.fromkeys(given)] or [HERE]


def _whole(url: str) -> str:
    whole = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/metrics")
    try:
        parts = urlsplit(whole)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in whole and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"{url!r} is no server: write http://HOST:PORT.")
    return whole
