"""`glmserve deploy`: works out, fills in, writes one file, says what to do with it.  It starts and stops nothing."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmserve.protocol.errors import SettingsError
from glmserve.tools.deploy.access import warnings_for
from glmserve.tools.deploy.deployment import Deployment, plan
from glmserve.tools.deploy.old_program import OldProgram, read_old_program
from glmserve.tools.deploy.render import render
from glmserve.tools.deploy.settings import DeployConfig, Target
from glmserve.tools.deploy.steps import BACKUP, Step, steps_of, steps_to_switch

TERMINAL = "-"
NEW = ".glmserve"  # no supervisor reads *.conf.glmserve by accident


def deploy(target: Target, model: str | None, flags: Mapping[str, Any], config_file: Path | None, asked: DeployConfig) -> None:
    """Write the file, and the steps to standard error.

    Raises SettingsError for settings that cannot be, for a file that is there already or cannot be written, and ModelLoadError
    for a folder that cannot be served.
    """
    old = _old_program(target, model, asked)
    deployment = _in_its_place(old, target, model, flags, config_file, asked) if old else plan(target, model, flags, config_file, asked)
    output = asked.output or _file_name(deployment, old)
    file = shlex.quote(output) if output != TERMINAL else "THIS_FILE"
    steps = steps_to_switch(deployment, file, old) if old else steps_of(deployment, file)
    told = as_text(steps)
    content = render(target, d=deployment, steps=told, old=old)
    if old:
        content = with_section_replaced(old, content)
    _write(content, output, asked.force, old)
    _tell(deployment, output, told, old)


def _old_program(target: Target, model: str | None, asked: DeployConfig) -> OldProgram | None:
    if asked.replace is None:
        return None
    if target != "supervisor":
        raise SettingsError(f"--replace reads a supervisor file and writes one: `glmserve deploy supervisor`, not {target}.")
    if model is None:
        raise SettingsError("say which model the server should serve in the old program's place: its folder, or demo.")
    return read_old_program(asked.replace)


def _in_its_place(
    old: OldProgram, target: Target, model: str | None, flags: Mapping[str, Any], config_file: Path | None, asked: DeployConfig
) -> Deployment:
    """The deployment with the old program's name and port, and its GPU where it names one."""
    port = {} if flags.get("port") is not None else {"port": str(old.port())}
    deployment = plan(target, model, {**flags, **port}, config_file, asked)
    return dataclasses.replace(
        deployment,
        name=asked.name or old.name,
        user=asked.user or old.kept("user") or deployment.user,
        gpu=old.environment.get("CUDA_VISIBLE_DEVICES", deployment.gpu),
        notes=deployment.notes + _notes(old),
    )


def _notes(old: OldProgram) -> tuple[str, ...]:
    notes = [
        "The page at / and a POST to /, /chat and /stream are served at the same port, so browsers and clients of api.py stay as they are. "
        "A program that speaks Gradio's own protocol (/run/predict, gradio_client) has to move to one of those or to /v1."
    ]
    if old.group:
        notes.append(f"The program belongs to the group {old.group}: `supervisorctl update` restarts the others of that group, too.")
    if not old.kept("user"):
        notes.append(
            "The old program ran as supervisord's own user, often root. The new one does not: see that its user can read the model."
        )
    return tuple(notes)


def _file_name(deployment: Deployment, old: OldProgram | None) -> str:
    if old:
        return old.file.name + NEW
    return {
        "supervisor": f"{deployment.name}.conf",
        "systemd": f"{deployment.name}.service",
        "docker": "Dockerfile",
        "compose": "compose.yaml",
        "kubernetes": "kubernetes.yaml",
    }[deployment.target]


def with_section_replaced(old: OldProgram, section: str) -> str:
    """The old file with the program's section kept as comments below the new one; all other lines stay as they are."""
    lines = old.file.read_text(encoding="utf-8").splitlines()
    before, was, after = lines[: old.lines.start], lines[old.lines.start : old.lines.stop], lines[old.lines.stop :]
    kept = ["", "; The program whose place it took:", *(f";was: {line}" for line in was)]
    return "\n".join([*before, *section.rstrip().splitlines(), *kept, *after]) + "\n"


def as_text(steps: list[Step]) -> str:
    """Steps as people read them: what to do, the commands indented below."""
    lines = []
    for step in steps:
        lines += ["", step.says, *(f"    {line}" for command in step.commands for line in command.splitlines())]
    return "\n".join(lines).strip("\n")


def _write(content: str, output: str, force: bool, old: OldProgram | None) -> None:
    if output == TERMINAL:
        sys.stdout.write(content)
        return
    path = Path(output)
    if old and path.exists() and path.samefile(old.file):
        raise SettingsError(f"{path} is the old program's own file: write elsewhere with --output; the commands then put it in place.")
    if path.exists() and not force:
        raise SettingsError(f"{path} is there already: --force writes over it, --output names another file, --output - shows it.")
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}): name a file in a folder you may write to with --output."
        ) from error


def _closed(deployment: Deployment) -> tuple[str, ...]:
    """What the service's user may not be able to read here; the nodes of a cluster are other machines."""
    if deployment.target == "kubernetes":
        return ()
    if deployment.contained:
        return warnings_for(str(deployment.uid), (mount.source for mount in deployment.mounts), mounted=True)
    return warnings_for(deployment.user, filter(None, (deployment.executable[0], deployment.folder)))


def _tell(deployment: Deployment, output: str, steps: str, old: OldProgram | None) -> None:
    lines = [] if output == TERMINAL else [f"{output} is written. Nothing has been changed or started."]
    if old:
        lines.append(f"It takes the place of {old.name} in {old.file}, at port {deployment.port}.")
        lines.append(f"The commands below keep the old file as {old.file.name}{BACKUP}.")
    lines += [*deployment.notes, *_closed(deployment), "", steps]
    print("\n".join(lines).strip(), file=sys.stderr)
