"""The tokenizer from a GGUF splits text as SmolLM does, gives every text back, and keeps special tokens special."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from glmserve.models.gguf_tokenizer import gguf_tokenizer, gguf_tokenizer_config

TEXTS = [
    "",
    " ",
    "hello  world",
    "你好,世界",
    "日本語 テスト",
    "👩‍👩‍👧‍👦 🇨🇳",
    "def f(x):\n\treturn x**2\r\n",
    "a\u200bb\u00a0c",
    "½ ² ٣ Ⅷ 二〇二六",
    "\x00\x7f",
]


@pytest.fixture
def metadata(write_tiny_gguf):
    return {name: field.contents() for name, field in GGUFReader(write_tiny_gguf().path).fields.items()}


@pytest.fixture
def tokenizer(metadata) -> Tokenizer:
    return gguf_tokenizer(metadata)


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text).tokens


def test_merges_apply_in_order_and_spaces_lead_their_word(tokenizer):
    assert tokens(tokenizer, "hello world") == ["hello", "Ġw", "o", "r", "l", "d"]


def test_every_digit_stands_alone(tokenizer):
    assert tokens(tokenizer, "x2026") == ["x", "2", "0", "2", "6"]


def test_special_tokens_are_one_id_each(tokenizer):
    assert tokenizer.encode("<|im_start|>hello<|im_end|>").ids == [1, tokenizer.token_to_id("hello"), 2]
    assert tokenizer.decode([1, tokenizer.token_to_id("hello"), 2]) == "hello"


def test_special_tokens_can_be_plain_text(tokenizer):
    """What keeps a user's "<|im_end|>" from ending a turn."""
    tokenizer.encode_special_tokens = True
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_start|>hello<|im_end|>").ids)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_chat_template_and_the_names_of_the_special_tokens_are_carried(metadata):
    config = gguf_tokenizer_config(metadata)
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert config["chat_template"] == metadata["tokenizer.chat_template"]
    assert config["model_max_length"] == 128


@pytest.mark.demo_en
def test_the_real_vocabulary_agrees_with_a_plain_reading_of_bpe(demo_en):
    """Against the textbook algorithm: split by GPT-2's pattern after isolating digits, then merge the lowest rank first."""
    tokenizer = Tokenizer.from_file(str(demo_en / "tokenizer.json"))
    reference = PlainBpe(tokenizer)
    for text in [*TEXTS, *mixed_texts(300)]:
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == text


class PlainBpe:
    """Byte-level BPE as slowly and plainly as it can be written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        regex = pytest.importorskip("regex", reason="needs the package regex, which transformers brings")
        self.pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        self.digit = regex.compile(r"(\p{N})")
        self.vocab = tokenizer.get_vocab()
        self.ranks = {pair: rank for rank, pair in enumerate(_merges(tokenizer))}

    def encode(self, text: str) -> list[int]:
        pieces = [piece for part in self.digit.split(text) for piece in self.pattern.findall(part)]
        return [self.vocab[token] for piece in pieces for token in self.merged(piece)]

    def merged(self, piece: str) -> list[str]:
        parts = [BYTES[byte] for byte in piece.encode()]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(range(len(pairs)), key=lambda place: self.ranks.get(pairs[place], len(self.ranks)))
            if pairs[best] not in self.ranks:
                break
            parts[best : best + 2] = ["".join(pairs[best])]
        return parts


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins: printable Latin-1 bytes are themselves, the rest are numbered from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


BYTES = _byte_alphabet()


def test_the_byte_alphabet_is_the_librarys():
    assert sorted(BYTES) == sorted(ByteLevel.alphabet())


def mixed_texts(count: int) -> list[str]:
    rng = random.Random(0)
    words = [
        "The",
        "capital",
        "isn't",
        "we'll",
        "北京",
        "是",
        "中国的首都。",
        "こんにちは",
        "Привет",
        "naïve",
        "😀",
        "🇫🇷",
        "3.14159",
        "2026",
        "0x1F",
        "١٢",
    ]
    words += [
        "for i in range(10):",
        "\tprint(i)",
        "{}",
        "==",
        "#!",
        "...",
        "——",
        "<|im_end|",
        "e\u0301",
        "\u00a0",
        "\u3000",
        "x_y",
        "https://a.b/c?d=e&f",
    ]
    gaps = ["", " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n"]
    return ["".join(part for _ in range(rng.randint(1, 12)) for part in (rng.choice(words), rng.choice(gaps))) for _ in range(count)]
