"""The 500 fixed requests by which form is judged, and the judging: how many lines, how many characters in each half.

    python -m training.fixed_requests --data FOLDER --out training/requests.jsonl

They are drawn once from the validation poems and committed; rhyme, tones and sense are not judged.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training import phrases, small_talk
from training.chats import render_rounds
from training.poems import FIXED_FORMS, TRAIN, VALID, Poem, half_lengths, read_poems

Pattern = tuple[tuple[int, ...], ...]  # of a poem: the lengths of its halves, a tuple a line
REQUESTS = Path(__file__).with_name("requests.jsonl")
MODERN_TITLES = (
    "春日", "江雪", "登高", "送别", "思乡", "秋夜", "明月", "梅花", "山居", "中秋",
    "咏柳", "雨夜", "渡江", "观海", "故人", "边塞", "落花", "古寺", "西湖", "重阳",
)  # fmt: skip


@dataclass(frozen=True)
class FixedRequest:
    """`history` and `query` as chat rounds; `patterns` are the shapes that are right (none: small talk, which has no shape)."""

    group: str
    query: str
    history: tuple[tuple[str, str], ...]
    patterns: tuple[Pattern, ...]

    @property
    def prompt(self) -> str:
        return render_rounds(list(self.history), self.query)

    def is_met_by(self, answer: str) -> bool:
        """Whether the answer has one of the shapes; an answer to small talk must only be there."""
        return shape_of(answer) in self.patterns if self.patterns else bool(answer)


def shape_of(answer: str) -> Pattern:
    """Half lengths of each line.  ASCII marks count as their full-width twins, which the tokenizer folds into them."""
    full_width = answer.strip().translate(str.maketrans(",?!;:", "，？！；："))
    return tuple(half_lengths(line) for line in full_width.split("\n"))


def read_requests(path: Path = REQUESTS) -> list[FixedRequest]:
    """The committed requests, in their order."""
    return [_from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_requests(train: list[Poem], valid: list[Poem], seed: int = 0) -> Iterator[FixedRequest]:
    """280 poems of a named form, 80 tunes, 60 second halves, 60 changes of form, 20 questions of small talk."""
    rng = random.Random(seed)
    poems = {form: [poem for poem in valid if poem.form == form and poem.title] for form in FIXED_FORMS}
    for form in FIXED_FORMS:
        for index in range(70):
            yield _of_form(rng, form, rng.choice(poems[form]), index)
    patterns = tune_patterns(train)
    tunes = [tune for tune, _ in Counter(poem.title for poem in train if poem.kind == "词").most_common(40)]
    for tune in tunes * 2:
        words = rng.choice(phrases.BY_TUNE).format(v=rng.choice(phrases.VERBS), t=tune)
        yield FixedRequest("词", words, (), patterns[tune])
    for _ in range(60):
        form = rng.choice(list(FIXED_FORMS))
        line = rng.choice(rng.choice(poems[form]).lines)
        width = FIXED_FORMS[form][1]
        yield FixedRequest("下句", rng.choice(phrases.BY_FIRST_HALF).format(x=line[:width]), (), (((width,),),))
    for _ in range(60):
        yield _changed(rng, poems)
    for _ in range(20):
        yield FixedRequest("闲谈", small_talk.draw_small_talk(rng)[0], (), ())


def tune_patterns(poems: list[Poem]) -> dict[str, tuple[Pattern, ...]]:
    """The shapes in which each tune occurs at least twice; a tune has several traditional ones."""
    counts: defaultdict[str, Counter[Pattern]] = defaultdict(Counter)
    for poem in poems:
        if poem.kind == "词" and poem.title:
            counts[poem.title][shape_of(poem.text)] += 1
    return {tune: tuple(sorted(shape for shape, count in counter.items() if count >= 2)) for tune, counter in counts.items()}


def _of_form(rng: random.Random, form: str, poem: Poem, index: int) -> FixedRequest:
    name = rng.choice(phrases.FORM_NAMES[form])
    slots = {"v": rng.choice(phrases.VERBS), "f": name, "a": poem.author, "x": poem.lines[0].rstrip("，。？！；：、")}
    slots["t"] = poem.title if index % 2 else rng.choice(MODERN_TITLES)
    slots["k"] = rng.choice(phrases.THEMES)
    groups = (phrases.BY_TITLE, phrases.BY_TITLE, phrases.BY_AUTHOR, phrases.BY_THEME, phrases.BY_FORM)
    return FixedRequest(form, rng.choice(groups[index % len(groups)]).format(**slots), (), (_pattern(form),))


def _changed(rng: random.Random, poems: dict[str, list[Poem]]) -> FixedRequest:
    before, after = rng.sample(list(FIXED_FORMS), 2)
    poem = rng.choice(poems[before])
    first = f"以《{poem.title}》为题写一首{before}"
    short = after[:2] if before[2:] == after[2:] else rng.choice(phrases.FORM_NAMES[after])
    words = rng.choice(phrases.CHANGE_FORM).format(f=short)
    return FixedRequest("换体", words, ((first, poem.text),), (_pattern(after),))


def _pattern(form: str) -> Pattern:
    couplets, width = FIXED_FORMS[form]
    return ((width, width),) * couplets


def _from_json(record: dict[str, object]) -> FixedRequest:
    history = tuple((question, answer) for question, answer in record["history"])  # type: ignore[attr-defined]
    patterns = tuple(tuple(tuple(line) for line in pattern) for pattern in record["patterns"])  # type: ignore[attr-defined]
    return FixedRequest(str(record["group"]), str(record["query"]), history, patterns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the fixed requests anew; they are committed, so this is rarely wanted.")
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {TRAIN} and {VALID}")
    parser.add_argument("--out", type=Path, default=REQUESTS)
    arguments = parser.parse_args()
    requests = draw_requests(read_poems(arguments.data / TRAIN), read_poems(arguments.data / VALID))
    lines = [
        json.dumps({"group": r.group, "query": r.query, "history": r.history, "patterns": r.patterns}, ensure_ascii=False) for r in requests
    ]
    arguments.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
