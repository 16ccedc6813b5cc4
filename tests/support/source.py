"""The source tree as syntax, for tests of its layout and its prose. It runs no code of the project."""

from __future__ import annotations

import ast
import functools
import gc
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    The garbage collector is off meanwhile. It might log the failure of a task of some other test, whose traceback also
    parses code, and Python 3.11 then raises an error of its own (cpython#106905).
    """
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()
