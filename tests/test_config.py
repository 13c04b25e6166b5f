"""Settings: which source wins, and what a user reads when a value is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from glmserve.config import (
    ChatConfig,
    EngineConfig,
    ServerConfig,
    Settings,
    allowed_values,
    group_of,
    load_chat_settings,
    load_serve_settings,
    misspelled_variables,
    wants_traces,
)
from glmserve.protocol.errors import SettingsError

KINDS = (EngineConfig, ServerConfig, ChatConfig)


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(flags: dict[str, object], config: Path | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_serve_settings(flags, config, environ or {})
    assert len(str(caught.value).splitlines()) < 20
    return str(caught.value)


def test_defaults_need_nothing() -> None:
    assert load_serve_settings({}, None, {}) == (EngineConfig(), ServerConfig())


def test_flags_win_over_variables_over_yaml_over_defaults(tmp_path: Path) -> None:
    config = write(tmp_path, "port: 1\nhost: 10.0.0.1\nmax_num_seqs: 3\nmodel: /models/yaml\n")
    environ = {"GLMSERVE_PORT": "2", "GLMSERVE_HOST": "10.0.0.2"}
    engine, server = load_serve_settings({"port": "3", "host": None}, config, environ)
    assert (server.port, server.host) == (3, "10.0.0.2")
    assert (engine.max_num_seqs, engine.model, engine.block_size) == (3, "/models/yaml", 16)


def test_a_switch_can_be_turned_off_against_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "enforce_eager: true\nenable_prefix_caching: false\n")
    engine, _ = load_serve_settings({"enforce_eager": False}, config, {})
    assert not engine.enforce_eager
    assert not engine.enable_prefix_caching


def test_yaml_takes_vllms_hyphens(tmp_path: Path) -> None:
    assert load_serve_settings({}, write(tmp_path, "max-num-seqs: 7\n"), {})[0].max_num_seqs == 7


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    environ = {"GLMSERVE_CONFIG": str(write(tmp_path, "port: 9\n"))}
    assert load_serve_settings({}, None, environ)[1].port == 9


def test_an_empty_file_and_an_empty_variable_say_nothing(tmp_path: Path) -> None:
    assert load_serve_settings({}, write(tmp_path, "# nothing\n"), {"GLMSERVE_PORT": ""})[1] == ServerConfig()


@pytest.mark.parametrize("keys", ["a,b", ["a", "b"]])
def test_several_api_keys(keys: object) -> None:
    assert load_serve_settings({"api_key": keys}, None, {})[1].api_key == ("a", "b")
    assert load_serve_settings({}, None, {"GLMSERVE_API_KEY": "a,b"})[1].api_key == ("a", "b")


@pytest.mark.parametrize("keys", [[""], ["secret", ""], ("secret", "  ")])
def test_an_empty_key_does_not_open_the_server_to_all(keys: object) -> None:
    with pytest.raises(SettingsError, match="api_key cannot be an empty key") as caught:
        load_serve_settings({"api_key": keys}, None, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("flags", [{"aging_seconds": math.inf}, {"otlp_traces_endpoint": "collector:4318"}])
def test_values_that_would_fail_later_are_refused(flags: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(flags))} cannot be"):
        load_serve_settings(flags, None, {})


def test_a_bad_flag_names_key_value_allowed_and_origin() -> None:
    message = refusal({"max_num_seqs": "0"})
    assert "max_num_seqs" in message
    assert "'0'" in message
    assert "a whole number from 1 to 4096" in message
    assert "--max-num-seqs" in message


def test_a_bad_variable_names_itself() -> None:
    message = refusal({}, None, {"GLMSERVE_DTYPE": "int8"})
    assert "GLMSERVE_DTYPE" in message
    assert "auto or float32 or float16 or bfloat16" in message


def test_a_bad_key_of_the_file_names_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "gpu_memory_utilization: 1.5\n")
    assert str(config) in (message := refusal({}, config))
    assert "a number above 0.0 to 1.0" in message


def test_all_bad_values_are_told_at_once() -> None:
    message = refusal({"block_size": "x", "dtype": "int8"})
    assert "block_size" in message
    assert "dtype" in message


def test_an_unknown_key_gets_a_guess(tmp_path: Path) -> None:
    message = refusal({}, write(tmp_path, "max_num_seq: 3\nprot: 1\n"))
    assert "max_num_seq " in message
    assert "did you mean max_num_seqs?" in message
    assert "prot in" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: [1\n", "is not YAML"),
        ("port: 1\nweb: true\nport: 2\n", "line 3: the key 'port' is there twice"),
        ("- port\n", "should hold lines like"),
        ("just words\n", "should hold lines like"),
    ],
)
def test_a_file_that_is_no_settings_file(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal({}, write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml cannot be read: No such file" in refusal({}, tmp_path / "nowhere.yaml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_bytes(b"\xff\xfe\x00port")
    assert "is not YAML" in refusal({}, tmp_path / "serve.yaml")


def test_the_variable_that_kubernetes_sets_is_explained() -> None:
    assert "enableServiceLinks" in refusal({}, None, {"GLMSERVE_PORT": "tcp://10.0.0.1:8000"})


def test_a_misspelled_variable_is_noticed() -> None:
    lines = misspelled_variables({"GLMSERVE_MAX_NUM_SEQ": "3", "GLMSERVE_PORT": "1", "GLMSERVE_SOMETHING_ELSE": "x", "HOME": "/"})
    assert lines == ["GLMSERVE_MAX_NUM_SEQ is no setting and does nothing; did you mean GLMSERVE_MAX_NUM_SEQS?"]


def test_chat_takes_the_first_of_the_servers_keys() -> None:
    assert load_chat_settings({}, {"GLMSERVE_API_KEY": "a,b"}).api_key == "a"
    assert load_chat_settings({"url": "http://box:1"}, {}).url == "http://box:1"


def test_traces_are_shown_only_on_request() -> None:
    assert wants_traces({"GLMSERVE_DEBUG": "1"})
    assert not wants_traces({})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in kind.model_fields])
def test_every_setting_has_help_a_group_and_words_for_its_values(kind: type[Settings], name: str) -> None:
    assert (kind.model_fields[name].description or "").endswith((".", "503.", "504."))
    assert group_of(kind, name)
    assert allowed_values(kind, name)


def test_no_setting_is_in_both_wings() -> None:
    assert not set(EngineConfig.model_fields) & set(ServerConfig.model_fields)


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the web team\nfirst\n\n  second  \n")
    _, server = load_serve_settings({"api_key_file": str(keys), "api_key": ["third"]}, environ={})
    assert server.api_key == ("third", "first", "second")


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_a_file_without_keys_does_not_open_the_server_to_all(tmp_path: Path, content: str | None) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_text(content)
    with pytest.raises(SettingsError, match="keys"):
        load_serve_settings({"api_key_file": str(keys)}, environ={})
