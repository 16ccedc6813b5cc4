"""The shipped agents import only `llmosd` and the standard library: they are programs like a user's own."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.support.paths import AGENTS


@pytest.mark.parametrize("path", sorted(AGENTS.glob("*.py")), ids=lambda path: path.name)
def test_imports_only_llmosd(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        assert all(name == "llmosd" or name.partition(".")[0] in sys.stdlib_module_names for name in names)
