"""The source files of a folder of programs: which file a module name means there, and which modules a file imports.

Used to import neighbours, to see which files have changed, and to compute the version of a program. All answers come
from the text of the files, so they do not depend on which imports have run. This module never executes a file.
"""

from __future__ import annotations

import ast
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Modules that no neighbour replaces: otherwise an agent file called queue.py would change all files beside it.
RESERVED = sys.stdlib_module_names | {"__main__", "llmosd"}


class FileVersion(NamedTuple):
    """A source file, and the version of its content: its size, its inode, and its times in nanoseconds.

    A program can set `modified` back, as `cp -p` and archives do, but not `changed`, the time of the last write.
    """

    path: str
    modified: int
    size: int
    inode: int
    changed: int


class SourceFile:
    """The content of one file at the time at which it was read.

    `key` is the name under which its folder knows it: a dotted module name, or "./" and the file's name if no module
    name means this file. `is_package`: it is the `__init__.py` of a package. `imports`: the keys of all modules that
    an import statement anywhere in the file could mean, also of modules that do not exist. A file that cannot be read
    has the `error`; one with a syntax error imports nothing.
    """

    __slots__ = ("error", "imports", "is_package", "key", "text", "version")

    def __init__(self, key: str, version: FileVersion) -> None:
        self.key = key
        self.version = version
        self.is_package = os.path.basename(version.path) == "__init__.py" and not key.startswith("./")
        self.text = b""
        self.error: OSError | None = None
        try:
            self.text = Path(version.path).read_bytes()
        except OSError as error:
            self.error = error
        self.imports = tuple(dict.fromkeys(self._imports()))

    @property
    def package(self) -> str:
        """The package that relative imports in this file start from; "" is the folder."""
        if self.is_package:
            return self.key
        return "" if self.key.startswith("./") else self.key.rpartition(".")[0]

    def target(self, name: str, level: int) -> str | None:
        """The key that `name` means in an import statement of this file with `level` leading dots; "" is the folder.

        None if it is no neighbour: a reserved module, or a module with the name of this file, such as the installed
        `redis` in an agent file redis.py. Raises `ImportError` for a relative import from outside the folder.
        """
        if not level:
            top = name.partition(".")[0]
            return None if top in RESERVED or (top == self.key and not self.is_package) else name
        parts = self.package.split(".") if self.package else []
        if level - 1 > len(parts):
            raise ImportError(f"{'.' * level}{name}: a relative import cannot leave the folder of the program")
        base = parts[: len(parts) - level + 1]
        return ".".join([*base, name] if name else base)

    def _imports(self) -> Iterator[str]:
        try:
            tree = ast.parse(self.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _with_parents(self.target(alias.name, 0))
            elif isinstance(node, ast.ImportFrom):
                try:
                    base = self.target(node.module or "", node.level)
                except ImportError:
                    continue
                yield from _with_parents(base)
                if base is not None:
                    yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")


def _with_parents(key: str | None) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`."""
    if key:
        parts = key.split(".")
        yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def candidates(folder: str, key: str) -> list[str]:
    """The paths at which the file of `key` may be, the preferred one first."""
    if key.startswith("./"):
        return [os.path.join(folder, key[2:])]
    base = os.path.join(folder, *key.split("."))
    return [os.path.join(base, "__init__.py"), f"{base}.py"]


def locate(folder: str, key: str) -> FileVersion | None:
    """The file that `key` means in `folder`, as it is now. A package takes precedence over a file, as in Python."""
    for path in candidates(folder, key):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(found.st_mode):
            return FileVersion(path, found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
    return None


def key_of(folder: str, path: Path) -> str:
    """The key of the file `path`, which is in `folder`."""
    found = locate(folder, path.stem) if path.stem.isidentifier() else None
    return path.stem if found is not None and found.path == str(path) else f"./{path.name}"


def parent_of(key: str) -> str:
    """The key of the package that contains the module `key`; "" if it is at the top of the folder."""
    return "" if key.startswith("./") else key.rpartition(".")[0]


def top_of(key: str) -> str:
    """The key of the module or package at the top of the folder that is or contains the module `key`."""
    return key if key.startswith("./") else key.partition(".")[0]
