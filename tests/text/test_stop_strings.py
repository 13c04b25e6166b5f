"""Stop strings in a stream are where a search of the whole text finds them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from glmserve.text.stop_strings import StopStrings

STOPS = st.lists(st.text("ab问", min_size=1, max_size=4), min_size=1, max_size=4)


def search(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The stop that is complete first, the longest of several; the text up to it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def stream(parts: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    watcher, text = StopStrings(stops, include), ""
    for part in parts:
        result = watcher.push(part)
        text += result.text
        if result.stop is not None:
            return text, result.stop
    return text + watcher.flush(), None


@given(parts=st.lists(st.text("ab问c", max_size=5)), stops=STOPS, include=st.booleans())
@example(parts=["a", "abab"], stops=["aab", "abb"], include=False)
@example(parts=["abc", "d"], stops=["abcd", "bc"], include=False)
def test_stream_finds_what_a_search_finds(parts: list[str], stops: list[str], include: bool) -> None:
    assert stream(parts, stops, include) == search("".join(parts), stops, include)


@given(parts=st.lists(st.text("abc", max_size=3)), stops=STOPS)
def test_held_text_is_the_shortest_possible(parts: list[str], stops: list[str]) -> None:
    watcher, given_out, seen = StopStrings(stops), "", ""
    for part in parts:
        result = watcher.push(part)
        if result.stop is not None:
            return
        given_out, seen = given_out + result.text, seen + part
        beginnings = {stop[:end] for stop in stops for end in range(len(stop))}
        held = max(len(beginning) for beginning in beginnings if seen.endswith(beginning))
        assert given_out == seen[: len(seen) - held]


def test_nothing_of_a_stop_string_is_shown() -> None:
    watcher = StopStrings(["\n问："])
    assert [watcher.push(part).text for part in ["好", "\n", "问", "题", "\n问"]] == ["好", "", "", "\n问题", ""]
    assert watcher.push("：x").stop == "\n问："


def test_a_stop_string_may_be_kept() -> None:
    assert stream(["one. tw", "o"], [". "], include=True) == ("one. ", ". ")
