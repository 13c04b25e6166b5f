"""What a person does with the file, in words and commands.  The same lines stand at the head of the file and on the terminal.

Nothing here runs a command.
"""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from glmserve.tools.deploy.deployment import Deployment
from glmserve.tools.deploy.old_program import OldProgram
from glmserve.tools.deploy.settings import Target

SUPERVISOR_FOLDER = "/etc/supervisor/conf.d"
BACKUP = ".before-glmserve"


@dataclass(frozen=True)
class Step:
    """What to do, and the commands that do it."""

    says: str
    commands: tuple[str, ...]


def steps_of(deployment: Deployment, file: str) -> list[Step]:
    """How to put `file`, written for `deployment`, to work."""
    makers: dict[Target, Callable[[Deployment, str], list[Step]]] = {
        "supervisor": _supervisor,
        "systemd": _systemd,
        "docker": _docker,
        "compose": _compose,
        "kubernetes": _kubernetes,
    }
    return makers[deployment.target](deployment, file)


def steps_to_switch(deployment: Deployment, file: str, old: OldProgram) -> list[Step]:
    """How to let the new program take the old one's place, and how to go back."""
    there, backup, control = shlex.quote(str(old.file)), shlex.quote(f"{old.file}{BACKUP}"), _supervisorctl(old)
    return [
        *_user_step(deployment.user),
        Step(
            "Switch: the old program stops, the server takes its name and its port.",
            (f"sudo cp -p {there} {backup}", f"sudo cp {file} {there}", f"sudo {control} update"),
        ),
        _wait_step(deployment.port),
        Step("Go back, at any time:", (f"sudo cp -p {backup} {there}", f"sudo {control} update")),
    ]


def _supervisorctl(old: OldProgram) -> str:
    return f"supervisorctl -c {shlex.quote(str(old.file))}" if old.is_main_file else "supervisorctl"


def _user_step(user: str) -> list[Step]:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return [
            Step(
                f"Make the user {user}, who must be able to read the model folder and this installation.",
                (f"sudo useradd --system --create-home --shell /usr/sbin/nologin {user}",),
            )
        ]
    return []


def _wait_step(port: int) -> Step:
    url = f"http://localhost:{port}"
    return Step(
        "Wait until it can serve (200), then see whether all is well.",
        (f"until curl -sf {url}/ready; do sleep 2; done", f"glmserve doctor {url}"),
    )


def _supervisor(deployment: Deployment, file: str) -> list[Step]:
    there = f"{SUPERVISOR_FOLDER}/{deployment.name}.conf"
    return [
        *_user_step(deployment.user),
        Step(
            "Start it. (Where supervisor includes another folder, such as /etc/supervisord.d with *.ini, put it there.)",
            (f"sudo mkdir -p {shlex.quote(deployment.log_folder)}", f"sudo cp {file} {there}", "sudo supervisorctl update"),
        ),
        _wait_step(deployment.port),
        Step("End it for good:", (f"sudo rm {there}", "sudo supervisorctl update")),
    ]


def _systemd(deployment: Deployment, file: str) -> list[Step]:
    unit = f"{deployment.name}.service"
    return [
        *_user_step(deployment.user),
        Step(
            "Start it, now and at each boot.",
            (f"sudo cp {file} /etc/systemd/system/{unit}", "sudo systemctl daemon-reload", f"sudo systemctl enable --now {unit}"),
        ),
        _wait_step(deployment.port),
        Step("Its log, and which requests were slow:", (f"journalctl -u {unit} -f", f"journalctl -u {unit} -o cat | glmserve slow -")),
        Step("End it for good:", (f"sudo systemctl disable --now {unit}", f"sudo rm /etc/systemd/system/{unit}")),
    ]


def build_command(deployment: Deployment, file: str) -> str:
    """How the image is made; the source is not part of an installed package, so its folder may have to be filled in."""
    source = shlex.quote(deployment.source_folder) if deployment.source_folder else "PATH/OF/THE/SOURCE"
    return f"docker build --file {file} --tag {deployment.image} {source}"


def _docker(deployment: Deployment, file: str) -> list[Step]:
    return [
        Step("Make the image from the source of glmserve. The model is not part of it.", (build_command(deployment, file),)),
        Step("Run it.", (docker_run(deployment),)),
        _wait_step(deployment.port),
        Step("Its log; its end, with time for running answers:", (f"docker logs -f {deployment.name}", f"docker stop {deployment.name}")),
    ]


def docker_run(deployment: Deployment) -> str:
    """What a Dockerfile cannot fix, as flags: GPU, ports, folders, limits, log, drain time."""
    words = ["docker run --detach --init --restart unless-stopped", f"--name {deployment.name}"]
    words += [f"--gpus '\"device={deployment.gpu}\"'"] if deployment.on_gpu else []
    words += [f"--publish {deployment.port}:{deployment.port}"]
    words += [f"--mount {shlex.quote(f'type=bind,source={m.source},target={m.target},readonly')}" for m in deployment.mounts]
    if deployment.keys_file:
        mount = f"type=bind,source={deployment.keys_file},target={deployment.container_keys},readonly"
        words += [f"--mount {shlex.quote(mount)}"]
    words += [
        f"--mount type=volume,source={deployment.name}-cache,target=/cache",
        f"--stop-timeout {deployment.stop_seconds} --memory {deployment.memory_gib}g --ulimit nofile=65536:65536",
        "--log-opt max-size=50m --log-opt max-file=10 --read-only --tmpfs /tmp:exec --cap-drop ALL --security-opt no-new-privileges",
        deployment.image,
    ]
    return " \\\n    ".join(words)


def _compose(deployment: Deployment, file: str) -> list[Step]:
    return [
        Step("Make the image, once.", ("glmserve deploy docker", build_command(deployment, "Dockerfile"))),
        Step("Start it.", (f"docker compose --file {file} up --detach",)),
        _wait_step(deployment.port),
        Step(
            "Its log; its end, with time for running answers:",
            (f"docker compose --file {file} logs -f", f"docker compose --file {file} down"),
        ),
    ]


def _kubernetes(deployment: Deployment, file: str) -> list[Step]:
    name = deployment.name
    steps = [
        Step(
            "Make the image and put it where your nodes can get it. (--image names the place.)",
            ("glmserve deploy docker", build_command(deployment, "Dockerfile"), f"docker push {deployment.image}"),
        )
    ]
    if deployment.keys_file:
        keys = f"kubectl create secret generic {name}-keys --from-file=api-keys={shlex.quote(deployment.keys_file)}"
        steps += [Step("Hand over the API keys.", (keys,))]
    for mount in (mount for mount in deployment.mounts if not mount.is_folder):
        made = f"kubectl create configmap {name}-{mount.name} --from-file={shlex.quote(mount.source)}"
        steps += [Step("Hand over the alert rules.", (made,))]
    return [
        *steps,
        Step("Start it.", (f"kubectl apply -f {file}", f"kubectl rollout status deployment/{name}")),
        Step("Talk to it from here.", (f"kubectl port-forward service/{name} {deployment.port}:{deployment.port}",)),
        Step("End it:", (f"kubectl delete -f {file}",)),
    ]
