"""The files of a model, identified by their content: what every cached fact about the model depends on.

`weights` and `conversion` use it for the keys of their caches, and the kernel to notice that a model was replaced. A
file that is read for the first time is hashed as a whole; its digest is cached, and counts while size, inode and times
of the file are the same. It never reads a file whose digest it knows, and never chooses the files to load.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import NamedTuple

import msgspec

from kernel.drivers.transformers import tuning_cache

WEIGHTS = {".safetensors"}
OTHER_WEIGHTS = {".bin", ".pt", ".pth"}  # transformers reads these only if there are no safetensors by these names:
FIRST = {"model.safetensors", "model.safetensors.index.json"}
# Configurations, tokenizers, chat templates, and the index of the weights. Not: texts for people, pictures.
SETTINGS = {".json", ".jinja", ".model", ".spm", ".tiktoken", ".txt"}
TEMPLATES = "additional_chat_templates"  # the only folder within a model's folder from which transformers reads
DIGEST = 16  # bytes
READERS = 4  # threads that hash
# A file that is written twice within one tick of its file system's clock has the same times after both writes. So the
# digest of a file that was younger than this when its reading began is not cached.
RECENT_NS = 2_000_000_000


class Stamp(NamedTuple):
    """Numbers of which one differs after each change of a file: a write sets `changed`, which no program sets back."""

    size: int
    inode: int
    modified: int
    changed: int


class KnownFile(msgspec.Struct, frozen=True):
    """A file whose content was hashed when it had this `stamp`."""

    stamp: Stamp
    digest: str


class ModelFiles:
    """The files of the model at `source`, a folder or one file, as they are now. Raises `OSError`.

    `digest` is a hash of their names and contents. Copies of a model have equal digests; two folders that differ in
    anything that transformers reads do not. `cache` is the folder in which digests are cached.
    """

    def __init__(self, source: Path, cache: Path, report: Callable[[str], None] = lambda stage: None) -> None:
        self._source = source
        self._cache = cache
        self._known = tuning_cache.get(cache, "files", str(source.resolve()), dict[str, KnownFile]) or {}
        began = time.time_ns()
        self._files = self._read(report)
        self.digest = tuning_cache.digest(
            sorted((name, file.digest) for name, file in self._files.items()) if source.is_dir() else self._only
        )
        settled = {
            name: file
            for name, file in self._files.items()
            if max(file.stamp.modified, file.stamp.changed) + RECENT_NS < began
        }
        if settled != self._known:
            tuning_cache.put(cache, "files", str(source.resolve()), settled)
            self._known = settled

    @property
    def changed(self) -> bool:
        """Whether the content of the files is another one than at first. Raises `OSError`, also if one is missing."""
        if {name: _stamp(path) for name, path in self._paths()} == {n: file.stamp for n, file in self._files.items()}:
            return False
        return ModelFiles(self._source, self._cache).digest != self.digest

    @property
    def _only(self) -> str:
        return next(iter(self._files.values())).digest

    def _paths(self) -> list[tuple[str, Path]]:
        if not self._source.is_dir():
            return [("", self._source)]
        found = [path for path in (*self._source.iterdir(), *self._source.glob(f"{TEMPLATES}/*")) if path.is_file()]
        read = SETTINGS | WEIGHTS | (set() if FIRST & {path.name for path in found} else OTHER_WEIGHTS)
        return sorted((str(path.relative_to(self._source)), path) for path in found if path.suffix in read)

    def _read(self, report: Callable[[str], None]) -> dict[str, KnownFile]:
        stamps = {name: (path, _stamp(path)) for name, path in self._paths()}
        files: dict[str, KnownFile] = {}
        new = []
        for name, (path, stamp) in stamps.items():
            if (known := self._known.get(name)) is not None and known.stamp == stamp:
                files[name] = known
            else:
                new.append((name, path, stamp))
        if new:
            report("hashing files")
            with ThreadPoolExecutor(READERS) as pool:
                digests: Iterable[str] = pool.map(_digest, [path for _, path, _ in new])
                files |= {
                    name: KnownFile(stamp, content) for (name, _, stamp), content in zip(new, digests, strict=True)
                }
        return files


def _stamp(path: Path) -> Stamp:
    found = os.stat(path)
    return Stamp(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=DIGEST)).hexdigest()
