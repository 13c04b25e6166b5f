"""Model folders that are broken in each way are told before they are served, and a whole one is left in peace."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from glmserve.protocol.errors import ModelLoadError, SettingsError
from glmserve.tools.doctor.finding import Verdict
from glmserve.tools.doctor.machine import Machine
from tests.tools.doctor.examining import finding, look
from tests.tools.doctor.fake_gpu import GIB, FakeGpu

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tokenizer"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1740651802\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model: config, tokenizer, two shards and their index."""
    folder = tmp_path / "chatglm-tiny"
    folder.mkdir()
    for name in ("config.json", "ice_text.model"):
        shutil.copy(FIXTURE / name, folder)
    tensors = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}
    for shard in SHARDS:
        save_file({name: np.ones((8, 64), np.float16) for name, file in tensors.items() if file == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 3072}, "weight_map": tensors}))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(name: str, change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: change(folder / name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_whole_folder_is_left_in_peace(folder: Path, cuda_machine: Machine) -> None:
    for reader in (None, FakeGpu(memory_used=0)):
        examined = look(str(folder), reader=reader, machine=cuda_machine, **({} if reader is None else {"checks": WITHOUT_DTYPE}))
        assert examined.is_healthy, [found for _, found in examined.findings if found.verdict is not Verdict.OK]


WITHOUT_DTYPE = "config,weights,whole_files,lfs_pointers,tokenizer,memory,disk,throttling,pcie,driver"  # the fixture is float32


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (edit("config.json", Path.unlink), "config", "no config.json"),
        (edit("config.json", lambda path: path.write_text("{")), "config", "cannot be read"),
        (edit("config.json", lambda path: path.write_text(POINTER)), "config", "git-lfs pointer"),
        (lambda folder: edit_config(folder, model_type="bert"), "config", "model_type 'bert'"),
        (lambda folder: edit_config(folder, multi_query_attention=True), "config", "ChatGLM2 or later"),
        (edit(SHARDS[1], Path.unlink), "weights", f"1 of 2 weight files are missing: {SHARDS[1]}"),
        (edit("model.safetensors.index.json", lambda path: path.write_text("[]")), "weights", "cannot be read"),
        (edit("model.safetensors.index.json", lambda path: path.write_text(POINTER)), "weights", "git-lfs pointer"),
        (edit(SHARDS[0], cut), "whole_files", f"{SHARDS[0]} is cut off: "),
        (edit(SHARDS[0], lambda path: path.write_bytes(path.read_bytes()[:20])), "whole_files", "cut off within its header"),
        (edit(SHARDS[0], lambda path: path.write_bytes(path.read_bytes() + b"more")), "whole_files", "too long"),
        (edit(SHARDS[0], lambda path: path.write_bytes(b"")), "whole_files", "is empty"),
        (edit(SHARDS[0], lambda path: path.write_text("<!DOCTYPE html><html>404</html>")), "whole_files", "is a web page"),
        (edit(SHARDS[0], lambda path: save_file({"a": np.ones(2)}, path)), "whole_files", "lacks 1 tensors that the index promises"),
        (
            edit(SHARDS[1], lambda path: path.write_text(POINTER)),
            "lfs_pointers",
            f"1 files are git-lfs pointers, not the files: {SHARDS[1]}",
        ),
        (edit("ice_text.model", Path.unlink), "tokenizer", "ice_text.model is missing"),
        (edit("ice_text.model", lambda path: path.write_text(POINTER)), "tokenizer", "git-lfs pointer"),
        (edit("ice_text.model", cut), "tokenizer", "cannot be read"),
    ],
)
def test_a_broken_folder(folder: Path, spoil: Callable[[Path], Any], check: str, words: str) -> None:
    spoil(folder)
    found = finding(str(folder), check)
    assert found.verdict is Verdict.FAIL
    assert words in found.summary
    assert found.mend


def test_a_model_that_is_not_served_need_not_be_downloaded_again(folder: Path) -> None:
    edit_config(folder, model_type="bert")
    assert "vLLM" in finding(str(folder), "config").mend[0]


def test_torch_files(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "config.json", tmp_path)
    assert finding(str(tmp_path), "weights").summary.startswith("no weights")
    names = [f"pytorch_model-{number:05d}-of-00003.bin" for number in (1, 3)]
    for name in names:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"x" * 2000)
    assert finding(str(tmp_path), "weights").evidence["missing"] == ["pytorch_model-00002-of-00003.bin"]  # there is no index
    assert finding(str(tmp_path), "whole_files").verdict is Verdict.OK
    cut(tmp_path / names[0])
    assert "the directory at its end is missing" in finding(str(tmp_path), "whole_files").summary
    (tmp_path / names[0]).write_bytes(b"\x80\x02\x8a\nl")
    assert "torch 1.5 or older" in finding(str(tmp_path), "whole_files").summary


def test_float32_weights_are_for_cpus(folder: Path) -> None:
    assert finding(str(folder), "dtype").verdict is Verdict.OK
    found = finding(str(folder), "dtype", reader=FakeGpu())
    assert found.verdict is Verdict.WARN
    assert "--dtype bfloat16" in found.mend[0]


@pytest.mark.parametrize(
    ("free", "verdict", "words"),
    [
        (16 * GIB, Verdict.OK, "room for"),
        (13 * GIB, Verdict.FAIL, "the weights do not fit"),
        (16 * GIB - 900 * 2**20, Verdict.WARN, "full contexts only"),
        (15 * GIB - 300 * 2**20, Verdict.FAIL, "no room for one full context"),
    ],
)
def test_room_on_the_gpu(tmp_path: Path, free: int, verdict: Verdict, words: str) -> None:
    """ChatGLM-6B's shape: 11.5 GiB of weights, 0.9 GiB of K/V a context; the card lets 90% of 16 GiB be used."""
    config = json.loads((FIXTURE / "config.json").read_text())
    shape = {"hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28, "num_attention_heads": 32, "vocab_size": 130528}
    (tmp_path / "config.json").write_text(json.dumps(config | shape | {"max_sequence_length": 2048, "torch_dtype": "float16"}))
    found = finding(str(tmp_path), "memory", reader=FakeGpu(memory_used=16 * GIB - free))
    assert (found.verdict, words in found.summary) == (verdict, True), found
    if "context" in words and verdict is Verdict.FAIL:
        assert "--max-model-len" in found.mend[0]


def test_room_on_this_machine_where_there_is_no_gpu(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   100 kB\n")
    found = finding(str(folder), "memory", machine=Machine(proc=tmp_path))
    assert found.verdict is Verdict.FAIL
    assert found.evidence["free_bytes"] == 102400


def test_room_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "free_disk", lambda self, path: 1000)
    assert finding(str(folder), "disk").verdict is Verdict.WARN
    (folder / SHARDS[0]).unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("3072", "13000000000"))
    found = finding(str(folder), "disk")
    assert found.verdict is Verdict.FAIL
    assert "12.1 GiB of weights are still to come" in found.summary


@pytest.mark.parametrize(
    ("version", "cuda", "verdict", "words"),
    [
        ("2.13.0+cpu", "None", Verdict.FAIL, "without CUDA"),
        ("2.13.0", "'14.1'", Verdict.FAIL, "wants CUDA 14.1, driver 580.10 runs up to 13.0"),
        ("2.4.0", "'12.1'", Verdict.WARN, "older than"),
        ("2.11.0", "'12.8'", Verdict.OK, "CUDA 12.8"),
    ],
)
def test_driver_and_torch(folder: Path, tmp_path: Path, version: str, cuda: str, verdict: Verdict, words: str) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\ncuda: Optional[str] = {cuda}\n")
    found = finding(str(folder), "driver", reader=FakeGpu(), machine=Machine(torch_folder=tmp_path))
    assert (found.verdict, words in found.summary) == (verdict, True), found


def test_open_files(folder: Path, tmp_path: Path) -> None:
    limits = tmp_path / str(os.getpid())
    limits.mkdir()
    (limits / "limits").write_text(
        "Limit  Soft Limit Hard Limit Units\nMax open files            256                  4096                 files\n"
    )
    found = finding(str(folder), "limits", machine=Machine(proc=tmp_path))
    assert found.verdict is Verdict.WARN
    assert "ulimit -n 4096" in found.mend[0]


def test_no_such_folder_and_no_such_check(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="there is no model folder at"):
        look(str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="there is no check 'polses'"):
        look(str(folder), "pulses,polses")


def test_a_quantized_folder(folder: Path) -> None:
    edit_config(folder, quantization_bit=4, torch_dtype="float16")
    assert finding(str(folder), "dtype").summary == "int4 weights"
    assert finding(str(folder), "dtype", reader=FakeGpu()).summary == "int4 weights; Fake A10 has room for the fp16 model"
    plain = finding(str(folder), "memory", reader=FakeGpu(memory_used=0)).evidence["weights_bytes"]
    edit_config(folder, quantization_bit=0)
    assert plain < finding(str(folder), "memory", reader=FakeGpu(memory_used=0)).evidence["weights_bytes"]
