"""Looks at the disk for the program loader: which files there are, and which have changed.

The loader calls these functions in jobs, because a disk, such as one of the network, may hang. They change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ipc.errors import UnknownProgram
from kernel.programs.neighbours import FolderModules, Update
from kernel.programs.sources import FileVersion, key_of


class FileLook(NamedTuple):
    """A file of programs on the disk. `versions`: those of the file and of all files that it imports."""

    key: str
    versions: frozenset[FileVersion]


class FolderLook(NamedTuple):
    """A look at a folder: the update of its modules, and some of its files."""

    update: Update
    files: dict[Path, FileLook]


def list_files(folder: Path) -> list[Path]:
    """The resolved paths of the files in a folder of agents, sorted by name."""
    return [path.resolve() for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def python_file(path: Path) -> Path:
    """The resolved path of a Python file. Raises `UnknownProgram`."""
    if not path.is_file():
        raise UnknownProgram(f"no file {path}", program=str(path))
    if path.suffix != ".py":
        raise UnknownProgram(f"{path} is not a Python file: its name does not end in .py", program=str(path))
    return path.resolve()


def look_at(modules: FolderModules, paths: Iterable[Path]) -> FolderLook:
    """Look for changes of the files in the folder of `modules`, and read the files at `paths` with their imports."""
    update = modules.update()
    files = {}
    for path in paths:
        key = key_of(modules.path, path)
        sources = update.next.imports_of(key).values()
        files[path] = FileLook(key, frozenset(source.version for source in sources if source is not None))
    return FolderLook(update, files)


def stamps(folder: Path, modules: FolderModules | None, paths: Iterable[Path]) -> set[object]:
    """The state of the files in `folder`, with their permissions, and of the files that `modules` imports."""
    files = {os.fspath(path) for path in (*folder.glob("*.py"), *paths)}
    if modules is not None:
        files |= modules.candidates()
    found: set[object] = set()
    for file in files:
        with suppress(OSError, ValueError):
            seen = os.stat(file)
            found.add((file, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
    return found
