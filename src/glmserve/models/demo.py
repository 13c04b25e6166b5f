"""The names of the models that come with this package: `demo` lies in it, `demo-en` is fetched once.

No torch: both wings read this.
"""

from __future__ import annotations

from pathlib import Path

from glmserve.models.smollm2 import fetch_smollm2

DEMO = "demo"
DEMO_EN = "demo-en"
BUILT_IN = (DEMO, DEMO_EN)
POEMS = Path(__file__).with_name("poems")  # a small ChatGLM in the released format; its README.md says what it is


def resolve_model(name_or_path: str, *, progress: bool = True) -> Path:
    """The folder of a model: `demo` is part of the package, `demo-en` is made on first use; anything else is a path already.

    Progress goes to stderr.  Raises ModelLoadError that says what to do where `demo-en` can be neither found nor fetched.
    """
    if name_or_path == DEMO:
        return POEMS
    if name_or_path == DEMO_EN:
        return fetch_smollm2(progress=progress)
    return Path(name_or_path).expanduser()
