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

from training.poems import TRAIN, VALID, Poem, read_poems
from training.tokenizer import pieces_of, train_tokenizer
from training.vocabulary import PIECES, Vocabulary

TOKENIZER = "ice_text.model"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tokenizer and lay the poems beside it, for training.train.")
    parser.add_argument("--poems", type=Path, required=True, help=f"folder with {TRAIN} and {VALID}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    poems = read_poems(arguments.poems / TRAIN)
    model = train_tokenizer(texts_of(poems))
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
    """All that the tokenizer counts characters in."""
    for poem in poems:
        yield f"{poem.text}{poem.title}{poem.author}".replace("\n", "")


if __name__ == "__main__":
    main()
