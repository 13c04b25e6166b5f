"""Classical poems as records: read, cleaned, their form named, and found again by title, author or form.

It knows poems only; how people ask for them is in `phrases` and `chats`.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRAIN, VALID = "train.jsonl.xz", "valid.jsonl.xz"  # the two files in a folder of poems
# name -> (couplets, characters of each half); a line of the data is one couplet
FIXED_FORMS = {
    "五言绝句": (2, 5),
    "七言绝句": (2, 7),
    "五言律诗": (4, 5),
    "七言律诗": (4, 7),
}
MAX_TITLE = 16  # characters; longer ones are prefaces rather than titles
NO_TITLES = ("句", "失题", "阙题", "缺题", "存目", "残句")  # an editor's word for its absence
_HAN = r"\u3400-\u9fff\U00020000-\U0003ffff"
_VERSE = re.compile(f"[{_HAN}，。？！；：、]+")
_TITLE = re.compile(f"[{_HAN}]{{1,{MAX_TITLE}}}")
_NUMBER = "[一二三四五六七八九十百]"
_SERIES = re.compile(rf"\s*其{_NUMBER}+$|\s*{_NUMBER}+(首|绝|咏|章|韵|解)$")
_MARKS = re.compile("[，。？！；：、]")


@dataclass(frozen=True, slots=True)
class Poem:
    """`lines` as in the data: one couplet (诗) or sentence (词) each, with its marks.  `title` is "" where none can be used."""

    kind: str  # 诗 or 词
    dynasty: str  # 唐 or 宋
    author: str
    title: str  # of a 词: its tune
    lines: tuple[str, ...]
    form: str  # one of FIXED_FORMS, 五言古诗, 七言古诗, 杂言诗 or 词

    @property
    def text(self) -> str:
        """The poem as it is answered: a line each."""
        return "\n".join(self.lines)


def read_poems(path: Path) -> list[Poem]:
    """The usable poems of a .jsonl.xz file; fragments, and those with gaps or brackets in a line, are left out."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return list(_usable(json.loads(line) for line in file))


def _usable(records: Iterable[dict[str, object]]) -> Iterator[Poem]:
    for record in records:
        lines = tuple(str(line) for line in record["lines"])  # type: ignore[attr-defined]
        if len(lines) < 2 or not all(_VERSE.fullmatch(line) for line in lines) or lines[0].startswith("诗题"):
            continue
        kind = str(record["kind"])
        title = clean_title(str(record["title"]), kind)
        form = "词" if kind == "词" else form_of(lines)
        yield Poem(kind, str(record["dynasty"]), str(record["author"]), title, lines, form)


def clean_title(title: str, kind: str) -> str:
    """The title without the number in its series; the first name of a tune with two.  "" where it is no plain title."""
    if kind == "词":
        title = re.split("[・·]", title)[0]
    title = _SERIES.sub("", _SERIES.sub("", title.strip())).strip()
    return title if _TITLE.fullmatch(title) and title not in NO_TITLES else ""


def form_of(lines: Iterable[str]) -> str:
    """The form that these couplets have, by their number and lengths alone (rhyme and tones are not looked at)."""
    halves = [half_lengths(line) for line in lines]
    for width, name in ((5, "五言"), (7, "七言")):
        if all(lengths == (width, width) for lengths in halves):
            return name + {2: "绝句", 4: "律诗"}.get(len(halves), "古诗")
    return "杂言诗"


def half_lengths(line: str) -> tuple[int, ...]:
    """Characters between the marks of a line: (5, 5) for a couplet of five characters a half.  A line must end with a mark."""
    parts = _MARKS.split(line)
    return tuple(map(len, parts[:-1])) if parts[-1] == "" else ()


class Library:
    """Poems and the ways to find one that goes with another."""

    def __init__(self, poems: list[Poem]) -> None:
        self.poems = poems
        self._by: defaultdict[tuple[str, ...], list[Poem]] = defaultdict(list)
        for poem in poems:
            keys = [("form", poem.form), ("author", poem.author), ("author", poem.author, poem.form)]
            if poem.title:
                keys += [("title", poem.title), ("title", poem.title, poem.form)]
            for key in keys:
                self._by[key].append(poem)
        self.tunes = sorted({poem.title for poem in poems if poem.kind == "词" and poem.title})
        counted = [(len(group), key[1]) for key, group in self._by.items() if key[0] == "author" and len(key) == 2]
        self.authors = [name for count, name in sorted(counted, reverse=True) if count >= 20 and name != "无名氏"]

    def like(self, rng: random.Random, poem: Poem, *, form: str = "", author: str = "") -> Poem | None:
        """Another poem of this form and author (where given), by preference under the same title; None where there is none."""
        keys: list[tuple[str, ...]] = []
        if poem.title:
            keys.append(("title", poem.title, form) if form else ("title", poem.title))
        keys.append(("author", author, form) if author and form else ("author", author) if author else ("form", form))
        fits: Callable[[Poem], bool] = lambda other: (  # noqa: E731
            other is not poem and (not form or other.form == form) and (not author or other.author == author)
        )
        for key in keys:
            group = self._by.get(key, [])
            for _ in range(min(8, len(group))):
                if fits(other := rng.choice(group)):
                    return other
        return None
