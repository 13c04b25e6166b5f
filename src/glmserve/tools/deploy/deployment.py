"""What a template needs to know of a server that is to be kept running: worked out from settings, model and machine.  Writes nothing."""

from __future__ import annotations

import getpass
import json
import math
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pynvml

from glmserve.config import EngineConfig, Given, ServerConfig, Settings, flag_name
from glmserve.models.catalog import read_spec
from glmserve.models.demo import BUILT_IN, DEMO, resolve_model
from glmserve.models.floor import head_values, layer_values
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError, SettingsError
from glmserve.tools.deploy.settings import DeployConfig, Target
from glmserve.version import __version__

CONTAINERS = ("docker", "compose", "kubernetes")
CONTAINER_UID = 10001  # of the user in the image; a number, since Kubernetes checks that it is not root's
CONTAINER_KEYS = "/run/secrets/api-keys"
FILES_OF_FLAGS = ("ptuning_checkpoint", "alert_rules")  # settings that name files, which a container must be given
SETTLE_SECONDS = 5  # from a pod's end being decided to no balancer sending it requests any more
STOP_MARGIN = 15  # seconds beyond --shutdown-timeout, in which the processes end
RUNTIME_BYTES = 8 * 2**30  # Python, torch and CUDA on the host, and one file of weights on its way to the GPU
CPU_RUNTIME_BYTES = 4 * 2**30  # Python, torch, and the largest step


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host that a container sees, read-only."""

    name: str
    source: str
    target: str
    is_folder: bool = True


@dataclass(frozen=True)
class Deployment:
    """One server.  Times are seconds, `memory_gib` is the most that its processes may take on the host."""

    target: Target
    name: str
    model: str
    served_name: str  # what clients and metrics call the model
    arguments: tuple[str, ...]  # of `glmserve`, as the service runs it
    executable: tuple[str, ...]
    port: int
    on_gpu: bool
    gpu: str
    user: str
    log_folder: str
    stop_seconds: int
    start_seconds: int
    memory_gib: int
    image: str
    keys_file: str | None
    mounts: tuple[Mount, ...] = ()
    notes: tuple[str, ...] = ()
    source_folder: str = ""
    folder: str = ""  # of the model, on this machine
    asked: DeployConfig = field(default_factory=DeployConfig)
    version: str = __version__
    uid: int = CONTAINER_UID
    container_keys: str = CONTAINER_KEYS
    settle_seconds: int = SETTLE_SECONDS

    @property
    def contained(self) -> bool:
        """Whether it runs in a container, and so as the image's user."""
        return self.target in CONTAINERS

    @property
    def home(self) -> str:
        """The user's folder; where the user is yet to be made, where it will be."""
        try:
            return pwd.getpwnam(self.user).pw_dir
        except KeyError:
            return f"/home/{self.user}"

    @property
    def scale_query(self) -> str:
        """What KEDA asks Prometheus: the replicas that all servers of this model need together."""
        return f"sum(glmserve:desired_replicas{{model_name={json.dumps(self.served_name, ensure_ascii=False)}}})"

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command, where no container provides the first word."""
        return self.executable + self.arguments


def plan(target: Target, model: str | None, flags: Mapping[str, Any], config_file: Path | None, asked: DeployConfig) -> Deployment:
    """Work it out.  Raises SettingsError for settings that cannot be, ModelLoadError for a folder that cannot be served."""
    given = Given({"model": model, **flags}, (EngineConfig, ServerConfig), config_file, {})
    engine, server = given.read(EngineConfig), given.read(ServerConfig)
    _check(given, server)
    folder = _model_folder(engine.model)
    spec = read_spec(resolve_model(engine.model)) if folder or engine.model == DEMO else None
    if spec is not None and (engine.max_model_len or 0) > spec.max_model_len:
        raise SettingsError(f"--max-model-len {engine.max_model_len} exceeds the {spec.max_model_len} tokens that {engine.model} allows.")
    on_gpu, notes = _where(engine, asked)
    mounts = _mounts(folder, engine, server) if target in CONTAINERS else ()
    return Deployment(
        target=target,
        name=_name(asked, engine.model, folder),
        model=str(folder or engine.model),
        served_name=server.served_model_name or (folder.resolve().name if folder else engine.model),
        arguments=("serve", *_arguments(given, engine, server, folder, mounts, on_gpu), *_keys(target, server)),
        executable=_executable(),
        port=server.port,
        on_gpu=on_gpu,
        gpu=str(asked.gpu),
        user=asked.user or _default_user(),
        log_folder=str(asked.log_folder.absolute()),
        stop_seconds=math.ceil(server.shutdown_timeout) + STOP_MARGIN,
        start_seconds=math.ceil(server.engine_start_timeout),
        memory_gib=_memory_gib(engine, spec, on_gpu),
        image=asked.image or f"glmserve:{__version__}",
        keys_file=str(server.api_key_file.absolute()) if server.api_key_file else None,
        mounts=mounts,
        notes=notes,
        source_folder=_source_folder(),
        folder=str(folder or ""),
        asked=asked,
    )


def _check(given: Given, server: ServerConfig) -> None:
    if "api_key" in given.values:
        raise SettingsError(
            f"a key in a command is seen by everybody who lists processes or reads the file (it came from {given.origin['api_key']}). "
            "Put keys into a file, one a line, and name it with --api-key-file."
        )
    if server.port == 0:
        raise SettingsError("--port 0 takes another port at each start: give one that clients and probes can know.")


def _model_folder(model: str) -> Path | None:
    """The folder as the service will see it; None for a model of this package.  Raises ModelLoadError where it cannot be served."""
    if model in BUILT_IN:
        return None
    folder = Path(model).expanduser().absolute()
    if not folder.is_dir():
        raise ModelLoadError(
            f"there is no model folder {folder}. Give the folder's path, or `demo`. Where the model lies on another machine only, "
            "a folder of that path with its config.json is enough: sizes are calculated from it."
        )
    read_spec(folder)
    return folder


def _where(engine: EngineConfig, asked: DeployConfig) -> tuple[bool, tuple[str, ...]]:
    """Whether it runs on a GPU, and what to tell of that."""
    if engine.device != "auto":
        return engine.device == "cuda", ()
    count = num_gpus()
    if not count:
        return False, ("This machine has no NVIDIA GPU, so the file says --device cpu. For a machine that has one: --device cuda.",)
    if asked.gpu >= count:
        raise SettingsError(f"there is no GPU {asked.gpu} here: this machine has {count}, counted from 0. Choose one with --gpu.")
    if count == 1:
        return True, ()
    return True, (
        f"This machine has {count} GPUs; this server uses GPU {asked.gpu}. Write one file for each: --gpu, --port and --name differ.",
    )


def num_gpus() -> int:
    """NVIDIA GPUs of this machine; 0 where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def _name(asked: DeployConfig, model: str, folder: Path | None) -> str:
    """Of the service: as asked, or the model's in letters that each target takes."""
    if asked.name == "glmserve":
        raise SettingsError(
            "a service cannot be named glmserve: Kubernetes would set GLMSERVE_PORT for it, which the server reads. Choose another --name."
        )
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in (folder.name if folder else model).lower())
    made = "-".join(filter(None, letters.split("-")))[:50].strip("-")
    return asked.name or (made if made[:1].isalpha() else f"glm-{made}".strip("-"))


def _mounts(folder: Path | None, engine: EngineConfig, server: ServerConfig) -> tuple[Mount, ...]:
    mounts = [Mount("model", str(folder), f"/models/{folder.name}")] if folder else []
    if engine.ptuning_checkpoint:
        prefix = Path(engine.ptuning_checkpoint).expanduser().absolute()
        mounts.append(Mount("ptuning", str(prefix), f"/models/ptuning/{prefix.name}"))
    if server.alert_rules:
        rules = server.alert_rules.expanduser().absolute()
        mounts.append(Mount("alert-rules", str(rules), f"/etc/glmserve/{rules.name}", is_folder=False))
    return tuple(mounts)


def _arguments(
    given: Given, engine: EngineConfig, server: ServerConfig, folder: Path | None, mounts: tuple[Mount, ...], on_gpu: bool
) -> list[str]:
    """The model and each setting that was given.  Port and device are always named: neither may change by accident."""
    seen_as = {mount.source: mount.target for mount in mounts}
    words = [seen_as.get(str(folder), str(folder)) if folder else engine.model]
    words += ["--host", server.host, "--port", str(server.port), "--device", "cuda" if on_gpu else "cpu"]
    for name in (name for name in given.fields if name in given.values):
        settings: Settings = engine if name in EngineConfig.model_fields else server
        if name not in ("model", "host", "port", "device", "api_key_file"):
            words += _words(name, getattr(settings, name), seen_as)
    return words


def _keys(target: Target, server: ServerConfig) -> list[str]:
    """Where the service finds the file of keys; systemd alone knows that only as it starts, so its template says it."""
    if server.api_key_file is None or target == "systemd":
        return []
    return ["--api-key-file", CONTAINER_KEYS if target in CONTAINERS else str(server.api_key_file.absolute())]


def _words(name: str, value: Any, seen_as: Mapping[str, str]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag_name(name if value else f"no_{name}")]
    if name in FILES_OF_FLAGS:
        path = str(Path(value).expanduser().absolute())
        return [flag_name(name), seen_as.get(path, path)]
    return [flag_name(name), str(value)]


def _executable() -> tuple[str, ...]:
    """How a service, which has no shell and no PATH of ours, starts this very installation."""
    script = Path(sys.executable).with_name("glmserve")
    return (str(script),) if script.is_file() else (sys.executable, "-m", "glmserve")


def _default_user() -> str:
    return "glmserve" if os.geteuid() == 0 else getpass.getuser()


def _memory_gib(engine: EngineConfig, spec: ModelSpec | None, on_gpu: bool) -> int:
    """Calculated, with room to spare: a limit is for the day when something leaks, not for every day."""
    if spec is None:  # demo-en, before it was fetched
        return 6
    values = layer_values(spec) + head_values(spec) * (1 if spec.tie_word_embeddings else 2)
    if on_gpu:
        return math.ceil((2 * values + RUNTIME_BYTES) / 2**30)
    one_context = 4 * spec.kv_values_per_token * (engine.max_model_len or spec.max_model_len)
    pool = engine.kv_cache_memory_bytes or min(max(2**30, one_context), 32 * one_context)
    return math.ceil((4 * values + pool + CPU_RUNTIME_BYTES) / 2**30)


def _source_folder() -> str:
    """Where this package was installed from, if that is a folder: what an image is built of."""
    try:
        origin = json.loads(distribution("glmserve").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    address = urlsplit(origin.get("url", ""))
    folder = Path(unquote(address.path))
    return str(folder) if address.scheme == "file" and (folder / "pyproject.toml").is_file() else ""
