"""The files for systemd, Docker, compose and Kubernetes, checked by their own tools or by their schemas."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from glmserve.protocol.errors import ModelLoadError, SettingsError
from glmserve.tools.deploy import deployment
from glmserve.tools.deploy.settings import TARGETS
from tests.conftest import PROJECT
from tests.tools.deploy.conftest import Write, what_it_serves

CUDA = {"device": "cuda"}


def kubernetes(text: str) -> dict[str, Any]:
    """Objects by kind, each one checked against Kubernetes' own schema."""
    objects = {document["kind"]: document for document in yaml.safe_load_all(text)}
    for kind, document in objects.items():
        if kind != "ScaledObject":  # KEDA's own
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    return objects


def dockerfile(text: str) -> list[tuple[str, str]]:
    """Instructions in order, comments left out, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def commands(target: str, text: str) -> list[str]:
    """The words after `glmserve`, as the target's own program would read them."""
    if target == "systemd":
        line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1]  # type: ignore[index]
        words = shlex.split(line.replace("%%", "%").replace("$$", "$"))
    elif target == "supervisor":
        line = re.search(r"^command=(.*)$", text, re.MULTILINE)[1]  # type: ignore[index]
        words = shlex.split(line % {})
    elif target == "docker":
        return json.loads(dict(dockerfile(text))["CMD"])  # type: ignore[no-any-return]
    elif target == "compose":
        return [word.replace("$$", "$") for word in next(iter(yaml.safe_load(text)["services"].values()))["command"]]
    else:
        return kubernetes(text)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]  # type: ignore[no-any-return]
    return words[words.index("serve") :]


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_in_the_file_means_what_was_asked_for(target: str, model_folder: Path, write: Write) -> None:
    given = {"port": "7860", "device": "cuda", "max_num_seqs": "64", "enable_prefix_caching": False, "served_model_name": "glm$1 50%"}
    engine, server = what_it_serves(commands(target, write(target, model_folder, given)))
    inside = target in deployment.CONTAINERS
    assert engine.model == (f"/models/{model_folder.name}" if inside else str(model_folder))
    assert (engine.device, engine.max_num_seqs, engine.enable_prefix_caching) == ("cuda", 64, False)
    assert (server.port, server.host, server.served_model_name) == (7860, "0.0.0.0", "glm$1 50%")


@pytest.mark.parametrize("target", TARGETS)
def test_a_key_lies_in_a_file_and_in_no_command(target: str, tmp_path: Path, write: Write) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    text = write(target, "demo", {"api_key_file": str(keys)})
    assert "secret\n" not in text and str(keys) in text
    assert "--api-key-file" in " ".join(commands(target, text))
    with pytest.raises(SettingsError, match="--api-key-file"):
        write(target, "demo", {"api_key": ["secret"]})


@pytest.mark.parametrize("target", TARGETS)
def test_the_time_to_stop_exceeds_the_time_to_drain(target: str, write: Write) -> None:
    text = write(target, "demo", {"shutdown_timeout": "100"})
    times = re.findall(r"(?:stopwaitsecs=|TimeoutStopSec=|stop-timeout |stop_grace_period: |GracePeriodSeconds: )(\d+)", text)
    assert times and all(int(seconds) > 100 for seconds in times)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_pinned_to_a_gpu_where_there_is_none(target: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "num_gpus", lambda: 0)
    text = write(target)
    assert what_it_serves(commands(target, text))[0].device == "cpu"
    if target != "docker":  # whose image does for both
        assert not re.search(r"CUDA_VISIBLE|nvidia[.]com|driver: nvidia", text)


@pytest.mark.parametrize("target", TARGETS)
def test_one_server_gets_one_gpu(target: str, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(deployment, "num_gpus", lambda: 4)
    text = write(target, gpu="2")
    assert what_it_serves(commands(target, text))[0].device == "cuda"
    assert re.search(r'CUDA_VISIBLE_DEVICES="?2"|device_ids: \["2"\]|"device=2"|nvidia.com/gpu: 1', text)
    assert "has 4 GPUs" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="no GPU 4"):
        write(target, gpu="4")


def test_memory_is_calculated_from_the_model(model_folder: Path, write: Write) -> None:
    assert "MemoryMax=20G" in write("systemd", model_folder, CUDA)  # 12.3 GB of weights pass through the host
    assert "MemoryMax=28G" in write("systemd", model_folder, {"device": "cpu"} | {"kv_cache_memory_bytes": str(2**30)})


def test_systemd_takes_the_unit(model_folder: Path, tmp_path: Path, write: Write) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: it comes with systemd")
    keys = tmp_path / "keys"
    for number, served in enumerate([CUDA, {"device": "cpu", "port": "80", "api_key_file": str(keys)}]):
        unit = tmp_path / f"chatglm{number}.service"
        unit.write_text(write("systemd", model_folder, served, user="root"))
        result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        ours = [line for line in result.stderr.splitlines() if unit.name in line]
        assert result.returncode == 0 and not ours, result.stderr
    assert "CAP_NET_BIND_SERVICE" in unit.read_text() and "${CREDENTIALS_DIRECTORY}/api-keys" in unit.read_text()


def test_kubernetes_takes_the_objects(model_folder: Path, tmp_path: Path, write: Write) -> None:
    served = {"device": "cuda", "api_key_file": "/keys", "alert_rules": str(tmp_path / "alerts.yaml"), "engine_start_timeout": "600"}
    objects = kubernetes(write("kubernetes", model_folder, served, name="chat", replicas="2", max_replicas="8"))
    assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget", "ScaledObject"}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert objects["Deployment"]["spec"]["replicas"] == 2 and pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] > 30 + 5
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 600
    assert (container["readinessProbe"]["httpGet"]["path"], container["livenessProbe"]["httpGet"]["path"]) == ("/ready", "/health")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} == {"tmp", "cache", "model", "alert-rules", "keys"}
    assert mounts["model"]["readOnly"] and mounts["keys"]["mountPath"] == "/run/secrets/api-keys"
    query = objects["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    assert query == f"sum(glmserve:desired_replicas{{model_name={json.dumps(model_folder.name, ensure_ascii=False)}}})"


def test_kubernetes_takes_a_claim_in_place_of_a_folder(model_folder: Path, write: Write) -> None:
    volumes = kubernetes(write("kubernetes", model_folder, CUDA, claim="models"))["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in volumes


def test_the_dockerfile_holds_together(model_folder: Path, write: Write) -> None:
    instructions = dockerfile(write("docker", model_folder, CUDA | {"port": "9000"}))
    last = dict(instructions)
    assert last["USER"] == "10001" and last["EXPOSE"] == "9000" and json.loads(last["ENTRYPOINT"]) == ["glmserve"]
    assert "localhost:9000/ready" in last["HEALTHCHECK"]
    assert [word for word, _ in instructions].count("FROM") == 2 and "ADD" not in last
    for source in ("pyproject.toml", "README.md", "LICENSE", "src"):
        assert any(word == "COPY" and source in value.split() for word, value in instructions) and (PROJECT / source).exists()
    for script in (value for word, value in instructions if word == "RUN"):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_compose_takes_the_file(model_folder: Path, tmp_path: Path, write: Write) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    text = write("compose", model_folder, CUDA | {"api_key_file": str(keys)}, name="chat")
    service = yaml.safe_load(text)["services"]["chat"]
    assert {"type": "bind", "source": str(model_folder).replace("$", "$$"), "read_only": True}.items() <= service["volumes"][0].items()
    assert service["healthcheck"]["test"][-1].count("/ready") == 1 and service["logging"]["options"] == {
        "max-size": "50m",
        "max-file": "10",
    }
    tool = compose_tool()
    if tool is None:
        pytest.skip("no docker compose is installed: the file is only known to be YAML with what it should hold")
    (tmp_path / "compose.yaml").write_text(text)
    result = subprocess.run([*tool, "--file", str(tmp_path / "compose.yaml"), "config"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert str(model_folder).replace("$", "$$") in yaml.safe_load(result.stdout)["services"]["chat"]["volumes"][0]["source"]


def compose_tool() -> list[str] | None:
    """`docker compose`, or the older `docker-compose`, or nothing."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises((SettingsError, ModelLoadError)):
        write("systemd", folder)
    with pytest.raises(SettingsError, match="comment"):
        write("supervisor", "demo", {"served_model_name": "a ;b"})
