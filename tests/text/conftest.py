"""Tokenizers of the text tests: the small one of this repository, the released one, and a byte-level BPE trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from glmserve.models.catalog import read_spec
from glmserve.models.chatglm.spec import spec_from_config
from glmserve.models.llama.spec import spec_from_config as llama_spec
from glmserve.models.spec import ModelSpec
from glmserve.text.bpe_tokenizer import BPETokenizer
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer

settings.register_profile("untimed", deadline=None)  # tests say what is right, benchmarks what is fast
settings.load_profile("untimed")

SMALL = Path(__file__).parents[1] / "fixtures" / "tokenizer"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ bos_token + 'system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def released_spec(vocab_size: int = 130528) -> ModelSpec:
    """Of ChatGLM-6B's released config.json; 150528 is the older vocabulary."""
    return spec_from_config({"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 28, "vocab_size": vocab_size})


@pytest.fixture(scope="session")
def small() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(SMALL, read_spec(SMALL))


@pytest.fixture(scope="session")
def small_open() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(SMALL, read_spec(SMALL), allow_special_tokens=True)


@pytest.fixture(scope="session")
def released(shared: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(shared / "tokenizer", released_spec())


@pytest.fixture(scope="session")
def released_open(shared: Path) -> ChatGLMTokenizer:
    """As the released code reads text."""
    return ChatGLMTokenizer(shared / "tokenizer", released_spec(), allow_special_tokens=True)


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        return json.loads((shared / "golden" / "v1_text" / f"{name}.json").read_text(encoding="utf-8"))

    return load


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with a chat template, as transformers would save it."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((SMALL / "corpus.txt").read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
        "pad_token": None,
        "chat_template": TEMPLATE,
    }
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bpe_spec(vocab_size: int = 608) -> ModelSpec:
    return llama_spec(
        {
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "vocab_size": vocab_size,
            "eos_token_id": 2,
        }
    )


@pytest.fixture(scope="session")
def bpe(bpe_folder: Path) -> BPETokenizer:
    return BPETokenizer(bpe_folder, bpe_spec())
