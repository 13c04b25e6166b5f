"""Makes what training reads out of the two poem files: the tokenizer, its pieces as JSON, and the poems beside them.

    python -m training.prepare --poems FOLDER --out FOLDER

Runs on a CPU in about a minute.  Deterministic: the same poems give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from training import phrases, small_talk
from training.poems import TRAIN, VALID, Poem, read_poems
from training.tokenizer import ASCII, pieces_of, train_tokenizer
from training.vocabulary import PIECES, Vocabulary

TOKENIZER = "ice_text.model"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tokenizer and lay the poems beside it, for training.train.")
    parser.add_argument("--poems", type=Path, required=True, help=f"folder with {TRAIN} and {VALID}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    poems = read_poems(arguments.poems / TRAIN)
    model = train_tokenizer(texts_of(poems), required_characters())
    (arguments.out / TOKENIZER).write_bytes(model)
    pieces = pieces_of(model)
    (arguments.out / PIECES).write_text(json.dumps(pieces, ensure_ascii=False), encoding="utf-8")
    for name in (TRAIN, VALID):
        shutil.copyfile(arguments.poems / name, arguments.out / name)
    vocabulary = Vocabulary(pieces)
    tokens = sum(len(vocabulary.encode(poem.text)) for poem in poems)
    characters = sum(len(poem.text) for poem in poems)
    print(f"{len(poems)} poems, {characters} characters, {tokens} tokens, {len(pieces)} pieces")


def texts_of(poems: list[Poem]) -> Iterator[str]:
    """All that the tokenizer must be able to say well."""
    for poem in poems:
        yield f"{poem.text}{poem.title}{poem.author}".replace("\n", "")


def required_characters() -> str:
    """Characters of every request and of every answer that is no poem, and ASCII."""
    texts = [value for name, value in vars(phrases).items() if name.isupper()]
    return "".join(_strings(texts)) + "".join(small_talk.all_texts()) + ASCII + "[Round]问答：“”…"


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_strings(key), *_strings(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


if __name__ == "__main__":
    main()
