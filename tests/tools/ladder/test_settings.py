"""Which rungs, which flags for their servers, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmserve.config import EngineConfig
from glmserve.protocol.errors import SettingsError
from glmserve.tools.ladder.rungs import RUNGS
from glmserve.tools.ladder.settings import LadderConfig, load_ladder_settings


@pytest.mark.parametrize(("text", "numbers"), [("0-5", [0, 1, 2, 3, 4, 5]), ("3", [3]), ("4,0-2,2", [0, 1, 2, 4])])
def test_rungs_are_climbed_from_the_lowest(text: str, numbers: list[int]) -> None:
    assert [rung.number for rung in LadderConfig(rungs=text).chosen] == numbers


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rungs": "0-6"}, "--rungs cannot be '0-6': it takes numbers from 0 to 5, as 0-3 or 0,3,4."),
        ({"rungs": "a"}, "--rungs cannot be 'a'"),
        ({"rungs": "3-1"}, "--rungs cannot be '3-1'"),
        ({"output": ("x.pdf",)}, "--output cannot be x.pdf: its name ends in one of .md, "),
        ({"token_ids": "9:1"}, "--token-ids cannot be '9:1': it takes LOW:HIGH"),
        ({"prompt_suffix_ids": "a"}, "--prompt-suffix-ids cannot be 'a': it takes whole numbers"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        LadderConfig(**settings)  # type: ignore[arg-type]
    assert str(error.value).startswith(words)


def test_a_bad_flag_is_told_as_everywhere() -> None:
    with pytest.raises(SettingsError, match="--rungs cannot be '7': it takes numbers"):
        load_ladder_settings("demo", {"rungs": "7"}, {})
    with pytest.raises(SettingsError, match="max_num_seqs"):
        load_ladder_settings("demo", {"max_num_seqs": "0"}, {})


def test_servers_get_the_flags_that_are_theirs() -> None:
    flags = {"rungs": "0", "output": ["a.md", "b.html"], "max_num_seqs": "16", "enable_prefix_caching": False, "skip_tokenizer_init": True}
    config, for_servers = load_ladder_settings("demo", {**flags, "dtype": None}, {})
    assert config.paths == [Path("a.md"), Path("b.html")]
    assert for_servers == ["--max-num-seqs", "16", "--no-enable-prefix-caching", "--skip-tokenizer-init"]


def test_every_rung_is_a_way_to_serve() -> None:
    """Its flags are settings of the engine, with values that they take, and each rung differs from the one below."""
    seen = []
    for rung in RUNGS.values():
        values: dict[str, object] = {}
        words = list(rung.flags)
        while words:
            name = words.pop(0).removeprefix("--").replace("-", "_")
            if words and not words[0].startswith("--"):
                values[name] = words.pop(0)
            else:
                values[name.removeprefix("no_")] = not name.startswith("no_")
        seen.append(EngineConfig.model_validate(values))
    assert [config.batching for config in seen] == ["serial", "async", "window", "continuous", "continuous", "continuous"]
    assert [config.enforce_eager for config in seen] == [True] * 4 + [False] * 2
    assert [config.kernels for config in seen] == ["plain"] * 4 + ["fused"] * 2
    assert len({config.model_dump_json() for config in seen}) == len(seen)
