"""The source tree as syntax, for tests of its layout and its prose. It runs no code of the project."""

from __future__ import annotations

import ast
import functools
import gc
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    The collector rests meanwhile. It may log the failure of a task of some other test, whose traceback parses code,
    too, and Python 3.11 takes that for a mistake of its own (cpython#106905).
    """
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()
