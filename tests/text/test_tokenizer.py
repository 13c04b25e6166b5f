"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmserve.models.catalog import read_spec
from glmserve.protocol.errors import ModelLoadError
from glmserve.text.chat_format import ChatMessage
from glmserve.text.tokenizer import load_tokenizer
from tests.text.conftest import SMALL, bpe_spec


def test_the_family_decides(bpe_folder: Path) -> None:
    for folder, spec in ((SMALL, read_spec(SMALL)), (bpe_folder, bpe_spec())):
        tokenizer = load_tokenizer(folder, spec)
        assert tokenizer.family == spec.family
        assert tokenizer.vocab_size == spec.vocab_size
        assert tokenizer.decode(tokenizer.encode("Hello, world!")) == "Hello, world!"
        assert "Hello" in tokenizer.render_chat([ChatMessage("user", "Hello")])


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    for spec, name in ((read_spec(SMALL), "ice_text.model"), (bpe_spec(), "tokenizer.json")):
        with pytest.raises(ModelLoadError, match=f"has no {name}.*--skip-tokenizer-init"):
            load_tokenizer(tmp_path, spec)


def test_special_tokens_in_text_are_an_option() -> None:
    spec = read_spec(SMALL)
    assert spec.bos_token_id in load_tokenizer(SMALL, spec, allow_special_tokens=True).encode("a<sop>b", add_special_tokens=False)
    assert spec.bos_token_id not in load_tokenizer(SMALL, spec).encode("a<sop>b", add_special_tokens=False)
