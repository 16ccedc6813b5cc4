"""The throttle of the log: lines that repeat are counted, and no other line is lost."""

from __future__ import annotations

import pytest

from llmosd.daemon import log_throttle
from llmosd.daemon.log_throttle import BURST, EVENT_BURST, UNTHROTTLED, WINDOW
from tests.support.log_lines import CollectedLog


def test_a_client_that_sends_garbage_does_not_fill_the_log() -> None:
    log = CollectedLog()
    for number in range(2_000):
        log.logger.warning("client cut off", client="bad", error=f"a frame of {number} bytes", size=number)
        if number == 1_000:
            log.logger.error("driver died")
    log.logger.info("last")
    assert [line["event"] for line in log.fields()] == ["client cut off"] * BURST + ["driver died", "last"]


def test_lines_that_were_left_out_are_counted_when_the_window_has_ended() -> None:
    log = CollectedLog()
    for _ in range(1000):
        log.logger.warning("client cut off", client="bad")
    log.log.poll()
    assert len(log.lines) == BURST
    log.now += WINDOW
    log.log.poll()
    log.log.poll()
    line = log.fields()[-1]
    assert (line["event"], line["repeated"], line["level"]) == (
        "client cut off",
        f"{1000 - BURST} more times",
        "warning",
    )
    assert len(log.lines) == BURST + 1


def test_the_next_window_begins_with_the_count_of_the_last_one() -> None:
    log = CollectedLog()
    for _ in range(BURST + 5):
        log.logger.info("again")
    log.now += WINDOW
    log.logger.info("again")
    assert [line.get("repeated") for line in log.fields()[BURST:]] == ["5 more times", None]


def test_lines_left_out_are_counted_at_the_end_of_the_daemon() -> None:
    log = CollectedLog()
    for _ in range(BURST + 1):
        log.logger.info("again")
    log.log.close()
    assert log.fields()[-1]["repeated"] == "1 more times"


def test_a_clients_repetition_does_not_hide_the_line_of_another_client() -> None:
    log = CollectedLog()
    for client in ("bad", "good"):
        for _ in range(100):
            log.logger.warning("client cut off", client=client)
    assert [line["client"] for line in log.fields()] == ["bad"] * BURST + ["good"] * BURST


def test_lines_about_two_processes_are_two_lines() -> None:
    log = CollectedLog()
    for pid in range(2 * BURST):
        log.logger.warning("agent failed", pid=pid, error="no file")
    assert [line["pid"] for line in log.fields()] == list(range(2 * BURST))


def test_random_fields_do_not_get_around_the_throttle() -> None:
    log = CollectedLog()
    for number in range(3 * EVENT_BURST):
        log.logger.warning("client cut off", error="".join(chr(97 + int(digit)) for digit in str(number)))
    assert len(log.lines) == EVENT_BURST


def test_the_memory_of_the_throttle_is_bounded_and_no_event_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_throttle, "MAX_KEYS", 100)
    log = CollectedLog()
    for number in range(1000):
        log.logger.info(f"event {number}")
    assert len(log.lines) == 1000


def test_a_report_is_exempt() -> None:
    log = CollectedLog()
    for _ in range(100):
        log.logger.info("report: process", **{UNTHROTTLED: True})
    assert len(log.lines) == 100
    assert UNTHROTTLED not in log.fields()[0]


def test_the_level_and_the_style_change_while_the_log_runs() -> None:
    log = CollectedLog("json")
    log.log.configure("warning", "json")
    log.logger.info("hidden")
    log.logger.warning("shown")
    log.log.configure("debug", "human")
    log.logger.debug("human")
    assert len(log.lines) == 2
    assert log.lines[0].startswith("{")
    assert "human" in log.lines[1]
    assert not log.lines[1].startswith("{")
