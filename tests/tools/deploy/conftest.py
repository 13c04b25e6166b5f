"""Files as `glmserve deploy` writes them, and what the commands in them mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from glmserve.cli.main import app
from glmserve.config import EngineConfig, ServerConfig, load_serve_settings
from glmserve.tools.deploy.settings import load_deploy_settings, target_named
from glmserve.tools.deploy.write import deploy

CONFIG = {
    "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32, "inner_hidden_size": 16384,
    "vocab_size": 130528, "max_sequence_length": 2048, "layernorm_epsilon": 1e-5, "bos_token_id": 130004, "eos_token_id": 130005,
    "pad_token_id": 3, "mask_token_id": 130000, "gmask_token_id": 130001, "position_encoding_2d": True, "torch_dtype": "float16",
}  # fmt: skip

Write = Callable[..., str]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder of ChatGLM-6B's shape, with a name that every format has to quote."""
    folder = tmp_path / "模型 50%d $HOME 'a\"b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Text of the file for a target; flags in two kinds, those of `deploy` and those of `serve`."""

    def write(target: str, model: str | Path | None = "demo", served: dict[str, object] | None = None, **asked: object) -> str:
        output = tmp_path / f"{target}.written"
        settings = load_deploy_settings({"output": str(output), "force": True, **asked})
        deploy(target_named(target), str(model) if model else None, served or {}, None, settings)
        return output.read_text(encoding="utf-8")

    return write


def what_it_serves(words: list[str]) -> tuple[EngineConfig, ServerConfig]:
    """The settings that `glmserve` would take from these words of a command."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert words[0] == "serve"
    values = command.make_context("serve", words[1:]).params
    flags = {name: values.get(name) or None for kind in (EngineConfig, ServerConfig) for name in kind.model_fields}
    return load_serve_settings(flags | {name[3:]: False for name in values if name.startswith("no_") and values[name]}, environ={})
