"""Fixtures of the tests of the command line: standard output as a terminal or a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest


class Screen(io.StringIO):
    """Standard output as a terminal, or as a pipe, in an encoding."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    def make(width: int | None, encoding: str = "utf-8") -> Screen:
        """Standard output: a terminal of `width` cells, or a pipe."""
        out = Screen(width is not None, encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(width or 10))
        return out

    return make
