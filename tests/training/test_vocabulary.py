"""Training reads text as the server does, and its tokenizer has the released layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmserve.models.catalog import read_spec
from glmserve.text.tokenizer import load_tokenizer
from training.fixed_requests import read_requests
from training.tokenizer import AFTER, BEFORE, pieces_of, train_tokenizer
from training.vocabulary import Vocabulary

TEXTS = ["床前明月光，疑是地上霜。\n举头望明月，低头思故乡。", "A  b\tc ", "𠮷野家 café ①", "：；！？…“”", ""]


def test_ids_and_texts_are_those_of_the_server(demo: Path, vocabulary: Vocabulary) -> None:
    tokenizer = load_tokenizer(demo, read_spec(demo))
    for text in ["床前明月光，疑是地上霜。\n举头望明月", "café Ⅷ 𠮷", *(request.prompt for request in read_requests()[::25])]:
        assert vocabulary.encode_prompt(text) == tokenizer.encode(text), text
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train_tokenizer(TEXTS * 3, rows=512)


def test_a_trained_tokenizer_has_the_released_layout(trained: bytes) -> None:
    pieces = pieces_of(trained)
    assert len(pieces) == len(set(pieces))
    assert tuple(pieces[: len(BEFORE)]) == BEFORE and pieces[len(BEFORE)] == "\u2581"
    after = pieces.index(AFTER[0])
    assert tuple(pieces[after : after + len(AFTER)]) == AFTER
    assert {"月", "霜"} <= set(pieces[len(BEFORE) : after])
    assert pieces[-256:] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_training_it_twice_gives_the_same_bytes(trained: bytes) -> None:
    assert train_tokenizer(TEXTS * 3, rows=512) == trained


def test_what_has_no_piece_is_spelled_in_bytes(trained: bytes) -> None:
    vocabulary = Vocabulary(pieces_of(trained))
    ids = vocabulary.encode("龘月")
    assert [vocabulary.pieces[index] for index in ids] == ["\u2581", "<0xE9>", "<0xBE>", "<0x98>", "月"]
    assert vocabulary.decode(ids) == "龘月"
