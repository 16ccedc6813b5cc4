"""Texts of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmosd.cli import values

LATIN = "caf\udce9"  # the bytes of "café" in Latin-1, as Python passes them in an argument


def test_the_argument_that_is_not_text_is_named() -> None:
    assert values.not_text(["run", "echo", "café"]) is None
    assert values.not_text(["run", LATIN]) == "the argument caf\\xe9 is not UTF-8 text"


def test_text_that_the_locale_cannot_decode_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    reason = values.not_text(["caf\udcc3\udca9"])
    assert reason == "the locale is not UTF-8, but the argument café is; set LC_ALL=C.UTF-8"


def test_a_path_that_leads_nowhere_is_left_to_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").symlink_to("loop.py")
    assert values.program_path("./loop.py:agent") == f"{tmp_path}/loop.py:agent"
    assert values.program_path("~nobody!/x.py") == f"{tmp_path}/~nobody!/x.py"
