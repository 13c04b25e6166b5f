"""Flags of `glmserve deploy` that are not flags of `glmserve serve`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from glmserve.config import Given, Settings, flag_name
from glmserve.protocol.errors import SettingsError

Target = Literal["supervisor", "systemd", "docker", "compose", "kubernetes"]
TARGETS: tuple[Target, ...] = get_args(Target)
# What may stand in a file without quotes: flag -> pattern, and the same in words.
NAMES = {
    "name": (r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", "a small letter, then small letters, digits and dashes, 50 in all"),
    "user": (r"[A-Za-z_][A-Za-z0-9_.-]*", "the name of a user: letters, digits, dots, dashes, underscores"),
    "image": (r"[\w][\w./:@-]*", "the name of an image, as registry.example.org/glmserve:1.0"),
    "claim": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "the name of a claim: small letters, digits, dashes, dots"),
}


class FileSettings(Settings):
    """The file"""

    output: str | None = Field(
        None, description="Where to write; - is the terminal. Default: in this folder, named as the target likes it."
    )
    force: bool = Field(False, description="Write over a file that is there.")
    replace: str | None = Field(
        None, description="supervisor: FILE or FILE:PROGRAM, the old program whose place the server takes. Name, port, user and log stay."
    )


class ServiceSettings(Settings):
    """The service"""

    name: str | None = Field(None, description="Its name: small letters, digits, dashes. Default: the model's.")
    user: str | None = Field(None, description="supervisor, systemd: who runs it. Default: you, or `glmserve` where you are root.")
    gpu: int = Field(0, ge=0, description="Number of the GPU it uses: one server, one GPU.")
    log_folder: Path = Field(Path("/var/log/supervisor"), description="supervisor: where its log lies.")


class ContainerSettings(Settings):
    """Containers"""

    image: str | None = Field(None, description="Image to run. Default: glmserve and this version.")
    replicas: int = Field(1, ge=1, description="kubernetes: servers to begin with, each with a GPU of its own.")
    max_replicas: int | None = Field(
        None, ge=1, description="kubernetes: let KEDA add servers up to this many, by glmserve:desired_replicas."
    )
    prometheus_url: str = Field("http://prometheus.monitoring:9090", description="kubernetes: where KEDA finds Prometheus.")
    claim: str | None = Field(
        None, description="kubernetes: a PersistentVolumeClaim that holds the model folder. Default: the folder's path on each node."
    )


class DeployConfig(ContainerSettings, ServiceSettings, FileSettings):
    """Settings of `glmserve deploy`."""

    @field_validator(*NAMES)
    @classmethod
    def _is_a_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        pattern, words = NAMES[str(info.field_name)]
        if value is not None and not re.fullmatch(pattern, value):
            raise SettingsError(f"--{info.field_name} cannot be {value!r}: it takes {words}.")
        return value


# Flags that mean nothing elsewhere; those not named here are for all, or say themselves where they belong.
ONLY_FOR: dict[str, tuple[Target, ...]] = {
    "user": ("supervisor", "systemd"),
    "log_folder": ("supervisor",),
    "image": ("docker", "compose", "kubernetes"),
    "replicas": ("kubernetes",),
    "max_replicas": ("kubernetes",),
    "prometheus_url": ("kubernetes",),
    "claim": ("kubernetes",),
}


def check_flags_belong(target: Target, asked: DeployConfig) -> None:
    """Raises SettingsError for a flag that would change nothing: whoever gives it expects that it does."""
    for name, targets in ONLY_FOR.items():
        if name in asked.model_fields_set and getattr(asked, name) is not None and target not in targets:
            raise SettingsError(f"{flag_name(name)} is for {', '.join(targets)}, and does nothing for {target}: leave it out.")


def load_deploy_settings(flags: Mapping[str, Any]) -> DeployConfig:
    """Raises SettingsError that names the flag and what it takes."""
    return Given(flags, (DeployConfig,), None, {}).read(DeployConfig)


def target_named(word: str) -> Target:
    """Raises SettingsError for a word that is no target."""
    for target in TARGETS:
        if word == target:
            return target
    near = get_close_matches(word, [*TARGETS, "docker-compose", "k8s", "supervisord"], n=1, cutoff=0.6)
    meant = {"docker-compose": "compose", "k8s": "kubernetes", "supervisord": "supervisor"}.get(near[0], near[0]) if near else None
    raise SettingsError(f"{word!r} is nothing to deploy to: choose {', '.join(TARGETS)}." + (f" Did you mean {meant}?" if meant else ""))
