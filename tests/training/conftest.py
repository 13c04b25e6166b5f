"""The pieces of the model that ships, and a few poems of our own making for what must not depend on the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.poems import Poem, form_of
from training.tokenizer import pieces_of
from training.vocabulary import Vocabulary

FIVE, SEVEN = "一二三四五，六七八九十。", "一二三四五六七，八九十上下左右。"


@pytest.fixture(scope="session")
def vocabulary(demo: Path) -> Vocabulary:
    """Of the tokenizer in the built-in model."""
    return Vocabulary(pieces_of((demo / "ice_text.model").read_bytes()))


@pytest.fixture(scope="session")
def poems() -> list[Poem]:
    """Three of each fixed form, by three authors, and three 词."""
    result = []
    for author in ("甲", "乙", "丙"):
        for lines in ((FIVE,) * 2, (SEVEN,) * 2, (FIVE,) * 4, (SEVEN,) * 4):
            result.append(Poem("诗", "唐", author, "春日", lines, form_of(lines)))
        result.append(Poem("词", "宋", author, "如梦令", ("一二三四五六。", "七八九十。"), "词"))
    return result
