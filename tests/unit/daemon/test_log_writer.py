"""The thread that writes the log: bounded, in order, and never in the way of its callers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from llmosd.daemon import log_writer
from llmosd.daemon.log_writer import LogWriter

LINE = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for number in (reading, writing):
        with suppress(OSError):
            os.close(number)


def read_until(reading: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        data = os.read(reading, 65_536)
        assert data, text[-200:]
        text += data
    return text


def test_lines_arrive_in_order_and_close_waits_for_them(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    lines = [b"line %d\n" % number for number in range(1000)]
    for line in lines:
        writer.write(line)
    assert writer.close(60, 60)
    assert os.read(reading, 65_536) == b"".join(lines)


def test_a_pipe_that_nobody_reads_holds_up_neither_a_writer_nor_the_end(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    for _ in range(3 * log_writer.MAX_LINES):
        writer.write(LINE)
    lines, size, _ = writer.queued
    assert lines <= log_writer.MAX_LINES
    assert size <= log_writer.MAX_BYTES
    assert not writer.close(60, 0)


def test_dropped_lines_are_counted_in_the_next_line_that_gets_through(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, max_lines=2000)
    writer.notice = lambda count: b"%d dropped\n" % count
    for _ in range(5000):
        writer.write(LINE)
    text = b""
    while text.count(LINE) + sum(map(int, re.findall(rb"(\d+) dropped\n", text))) < 5000:
        if not writer.queued[0]:
            writer.write(b"next\n")
        text += os.read(reading, 65_536)
    assert text.count(LINE) + sum(map(int, re.findall(rb"(\d+) dropped\n", text))) == 5000


def test_the_queue_is_bounded_in_bytes(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], max_bytes=200_000)
    for _ in range(100):
        writer.write(b"y" * 100_000)
    assert writer.queued[1] <= 200_000
    writer.write(b"z" * 300_000)
    assert writer.queued[1] <= 200_000


def test_lines_that_the_disk_refuses_are_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    full = LogWriter(os.open("/dev/full", os.O_WRONLY))
    full.write(LINE)
    assert full.close(60, 60)
    assert full.queued == (0, 0, 1)
    os.close(reading)
    gone = LogWriter(writing)
    gone.write(LINE)
    gone.write(LINE)
    assert gone.close(60, 60)
    assert gone.queued == (0, 0, 2)


def test_a_torn_line_is_ended_before_the_next_one(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    write, calls = os.write, []

    def torn(number: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 1:
            return write(number, data[:3])
        if len(calls) == 2:
            raise OSError("full")
        return write(number, data)

    monkeypatch.setattr(log_writer.os, "write", torn)
    writer.notice = lambda count: b"%d dropped\n" % count
    writer.write(b"abcdef\n")
    assert writer.close(60, 60)
    writer.write(b"next\n")
    assert writer.close(60, 60)
    monkeypatch.undo()
    assert os.read(reading, 100) == b"abc\n1 dropped\nnext\n"


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    for _ in range(2000):
        writer.write(LINE)
    writer.write(b"end\n")
    assert read_until(reading, b"end\n") == LINE * 2000 + b"end\n"


def test_a_forked_child_writes_what_fits_and_never_waits(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    writer.forked()
    writer.write(b"child\n")
    assert os.read(reading, 100) == b"child\n"
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, LINE):
            pass
    os.set_blocking(writing, True)
    writer.write(b"child\n")
    assert writer.close(60, 0)


def test_an_agent_that_closes_standard_error_does_not_redirect_the_log(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    os.close(writing)
    writer.write(b"still here\n")
    assert os.read(reading, 100) == b"still here\n"
