"""glmserve: an inference server for ChatGLM-6B and the GLM family that keeps the GPU truly at work.

`from glmserve import LLM, SamplingParams` is the offline face.  Both are loaded when first asked for: `glmserve --help` and the HTTP
wing must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from glmserve.version import __version__

_HOMES = {"LLM": "glmserve.llm", "SamplingParams": "glmserve.protocol.sampling_params"}

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
