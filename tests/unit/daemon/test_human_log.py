"""The human log of the daemon is harmless on a terminal."""

from __future__ import annotations

import structlog

from llmosd.daemon import logs

HOSTILE = "\x1b[2J \x9b31m \u202e\r\n"


class Odd:
    def __repr__(self) -> str:
        return HOSTILE


def test_a_line_of_the_human_log_is_one_line_without_foreign_control_characters() -> None:
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=logs._write_traceback)
    fields = {
        "event": HOSTILE,
        "level": "info",
        HOSTILE: 1,
        "name": HOSTILE,
        "error": ValueError(HOSTILE),
        "odd": Odd(),
    }
    line = renderer(None, "info", logs._escape(None, "info", fields))
    assert line.isprintable()
    assert line.count("x1b[2J ") == 5


def test_the_traceback_in_the_human_log_has_lines_but_no_other_control_characters() -> None:
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=logs._write_traceback)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        line = renderer(None, "error", logs._escape(None, "error", {"event": "failed", "exc_info": error}))
    assert {character for character in line if not character.isprintable()} == {"\n"}
    assert "ValueError: \\x1b[2J" in line
