"""The human log of the daemon is harmless on a terminal."""

from __future__ import annotations

from tests.support.log_lines import CollectedLog

HOSTILE = "\x1b[2J \x9b31m \u202e\r\n"


class Odd:
    def __repr__(self) -> str:
        return HOSTILE


def test_a_line_of_the_human_log_is_one_line_without_foreign_control_characters() -> None:
    log = CollectedLog("human")
    log.logger.info(HOSTILE, **{HOSTILE: 1}, name=HOSTILE, error=ValueError(HOSTILE), odd=Odd())
    (line,) = log.lines
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert line.count("x1b[2J ") == 5


def test_the_traceback_in_the_human_log_has_lines_but_no_other_control_characters() -> None:
    log = CollectedLog("human")
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        log.logger.error("failed", exc_info=error)
    (line,) = log.lines
    assert {character for character in line if not character.isprintable()} == {"\n"}
    assert "ValueError: \\x1b[2J" in line


def test_a_terminal_gets_colours_and_a_file_gets_json() -> None:
    terminal, file = CollectedLog("auto", terminal=True), CollectedLog("auto")
    for log in (terminal, file):
        log.logger.info("ready", pid=1)
    assert "\x1b[" in terminal.lines[0]
    assert file.fields()[0]["event"] == "ready"
