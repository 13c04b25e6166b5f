"""Which families there are: a model is one folder and one line here.  No torch: both wings read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmserve.models.chatglm import spec as chatglm
from glmserve.models.llama import spec as llama
from glmserve.models.spec import ModelSpec, read_config
from glmserve.protocol.errors import ModelLoadError


@dataclass(frozen=True)
class Family:
    """How config.json becomes a spec, and where the torch model lives, as "module:Class"."""

    spec_from_config: Callable[[dict[str, Any]], ModelSpec]
    model_class: str


FAMILIES = {  # config.json's model_type -> family
    "chatglm": Family(chatglm.spec_from_config, "glmserve.models.chatglm.model:ChatGLM"),
    "llama": Family(llama.spec_from_config, "glmserve.models.llama.model:Llama"),
}


def family_of(config: dict[str, Any], folder: Path) -> Family:
    """The family of a parsed config.json.  Raises ModelLoadError for a model_type this server does not know."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelLoadError(f"{folder / 'config.json'} has model_type {model_type!r}; this server knows {known}. vLLM serves many others.")
    return FAMILIES[model_type]


def read_spec(folder: Path) -> ModelSpec:
    """The spec of the model in `folder`.  Raises ModelLoadError for a missing, broken or unsupported config.json."""
    config = read_config(folder)
    family = family_of(config, folder)
    try:
        return family.spec_from_config(config)
    except KeyError as error:
        raise ModelLoadError(f"{folder / 'config.json'} lacks the key {error}. Download it again.") from error
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"{folder / 'config.json'}: {error}") from error
