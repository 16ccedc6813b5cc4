"""The fields of a log line: bounded, plain, and harmless however a value behaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmosd.daemon.log_fields import MAX_FIELD, MAX_LINE, MAX_TRACEBACK
from tests.support.log_lines import CollectedLog


class Hostile:
    def __repr__(self) -> str:
        raise SystemExit("no text")

    __str__ = __repr__


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    __len__ = __str__  # type: ignore[assignment]


class HostileError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def logged(style: Any = "json", /, **fields: Any) -> str:
    log = CollectedLog(style)
    log.logger.warning("it happened", **fields)
    (line,) = log.lines
    return line


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("style", ["json", "human"])
@pytest.mark.parametrize(
    "value",
    [
        "x" * 50_000_000,
        ValueError("x" * 50_000_000),
        b"x" * 1_000_000,
        ["x" * 1000] * 1000,
        {f"key {n}" * 100: "x" * 1000 for n in range(1000)},
        10**100_000,
        nested(2000),
        Hostile(),
        HostileText("x"),
        HostileError(),
        {Hostile(): Hostile()},
        "\ud800",
        float("nan"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_makes_a_line_long_or_fails_it(style: str, value: object) -> None:
    line = logged(style, value=value, other=1)
    assert len(line) < 3 * MAX_FIELD
    assert "it happened" in line
    assert line.count("\n") == 1
    if style == "json":
        assert json.loads(line)["other"] == 1


def test_many_fields_and_long_ones_share_one_bound() -> None:
    line = json.loads(logged(**{f"field_{n}": "x" * 10_000 for n in range(1000)}))
    assert line["event"] == "it happened"
    assert line["level"] == "warning"
    assert line["omitted_fields"] > 900
    assert len(json.dumps(line)) < MAX_LINE + 64 * 100


def test_plain_values_stay_as_they_are() -> None:
    line = json.loads(logged(path=Path("/x"), n=3, none=None, yes=True, list=[1, "a", {"b": 2.5}], error=OSError("no")))
    assert line["path"] == "/x"
    assert (line["n"], line["none"], line["yes"], line["error"]) == (3, None, True, "no")
    assert line["list"] == [1, "a", {"b": 2.5}]


@pytest.mark.parametrize("style", ["json", "human"])
@pytest.mark.parametrize("error", [ValueError("x" * 1_000_000), HostileError()], ids=["long", "hostile"])
def test_a_traceback_is_bounded_and_names_its_error(style: Any, error: Exception) -> None:
    def recurse(depth: int) -> None:
        if depth:
            recurse(depth - 1)
        raise error

    log = CollectedLog(style)
    try:
        recurse(300)
    except Exception:
        log.logger.exception("failed")
    (line,) = log.lines
    assert type(error).__name__ in line or "characters" in line
    assert "test_log_fields.py" in line
    assert len(line) < 2 * MAX_TRACEBACK


def test_an_error_of_very_many_groups_has_a_traceback_soon() -> None:
    group: Exception = ValueError("leaf")
    for _ in range(40):
        group = ExceptionGroup("group", [group] * 10)
    log = CollectedLog()
    log.logger.error("failed", exc_info=group)
    assert "ExceptionGroup" in log.lines[0]
