"""Texts of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipc.errors import BadArguments
from llmosd.cli import values

LATIN = "caf\udce9"  # the bytes of "café" in Latin-1, as Python passes them in an argument


def test_the_argument_that_is_not_text_is_named() -> None:
    assert values.not_sendable(["run", "echo", "café"]) is None
    assert values.not_sendable(["run", LATIN]) == "the argument caf\\xe9 is not UTF-8 text"


def test_text_that_the_locale_cannot_decode_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    reason = values.not_sendable(["caf\udcc3\udca9"])
    assert reason == "the locale is not UTF-8, but the argument café is; set LC_ALL=C.UTF-8"


def test_a_path_that_leads_nowhere_is_left_to_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").symlink_to("loop.py")
    assert values.program_path("./loop.py:agent") == f"{tmp_path}/loop.py:agent"
    assert values.program_path("~nobody!/x.py") == f"{tmp_path}/~nobody!/x.py"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["kill", str(2**64)], f"the number {2**64} is too large"),
        (["nice", "1", str(-(2**63) - 1)], f"the number {-(2**63) - 1} is too large"),
        (["run", "echo", "--limit", f"tokens={'9' * 5000}"], f"the number {'9' * 30}... is too large"),
        (["kill", str(2**64 - 1), str(-(2**63))], None),
    ],
)
def test_the_number_that_a_request_cannot_carry_is_named(arguments: list[str], reason: str | None) -> None:
    assert values.not_sendable(arguments) == reason


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [
        ("5", "--limit takes NAME=NUMBER, got '5'"),
        ("tokenz=5", "no limit tokenz; did you mean tokens? the limits are tokens, cpu_seconds, "),
        ("tokens=many", "--limit takes NAME=NUMBER: Expected `int | null`, got `str`"),
    ],
)
def test_a_limit_that_does_not_fit_is_explained(limit: str, complaint: str) -> None:
    with pytest.raises(BadArguments) as caught:
        values.limits([limit])
    assert caught.value.message.startswith(complaint)
