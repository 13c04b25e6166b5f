"""`demo` and `demo-en` name models anywhere; every other name is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmserve.models import demo as demo_module
from glmserve.models.catalog import read_spec
from glmserve.models.demo import resolve_model
from glmserve.text.tokenizer import load_tokenizer

MAX_BYTES = 25_000_000


def test_a_path_stays_a_path() -> None:
    assert resolve_model("models/chatglm-6b") == Path("models/chatglm-6b")
    assert resolve_model("~/chatglm-6b") == Path.home() / "chatglm-6b"


def test_demo_lies_in_the_package_as_a_released_int8_folder_does() -> None:
    folder = resolve_model("demo")
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "ice_text.model", "model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    spec = read_spec(folder)
    assert (spec.family, spec.attention, spec.released_bits) == ("chatglm", "prefix", 8)
    tokenizer = load_tokenizer(folder, spec)
    ids = tokenizer.encode("明月几时有")
    assert ids[-2:] == [spec.gmask_token_id, spec.bos_token_id] and len(ids) == 8  # a piece a character, and a space before them
    assert tokenizer.decode(ids[:-2]) == "明月几时有"


def test_demo_en_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "fetch_smollm2", lambda *, progress: Path("fetched") / str(progress))
    assert resolve_model("demo-en") == Path("fetched/True")
    assert resolve_model("demo-en", progress=False) == Path("fetched/False")
