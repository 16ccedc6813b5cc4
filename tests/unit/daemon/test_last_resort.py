"""The last resort: a stop that takes too long ends the process, with the stacks of its threads in a file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from llmosd.daemon.last_resort import IN_C_SECONDS, LastResort

GUARD = 60.0  # seconds; only a test that hangs takes as long


class Exit:
    """Stands for the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.codes: list[int] = []
        self.in_c: list[float] = []
        self.ended = threading.Event()
        self.flushed = False
        self.path = folder / "crash.log"
        self.resort = LastResort(self.path.open("wb"), self.flush, exit_now=self.exit, exit_in_c=self.later)

    def flush(self) -> None:
        self.flushed = True

    def later(self, seconds: float, **options: Any) -> None:
        assert options["exit"]
        self.in_c.append(seconds)

    def exit(self, code: int) -> None:
        self.codes.append(code)
        self.ended.set()


def test_a_stop_that_takes_too_long_ends_with_the_stacks_and_the_log(tmp_path: Path) -> None:
    end = Exit(tmp_path)
    end.resort.arm(0.0)
    assert end.ended.wait(GUARD)
    assert end.codes == [1]
    assert end.flushed
    assert "test_last_resort.py" in end.path.read_text()


def test_the_stack_of_the_loop_is_written_however_many_threads_there_are(tmp_path: Path) -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(120)]
    for thread in threads:
        thread.start()
    end = Exit(tmp_path)
    end.resort.arm(0.0)
    assert end.ended.wait(GUARD)
    done.set()
    for thread in threads:
        thread.join()
    assert "in test_the_stack_of_the_loop_is_written" in end.path.read_text()


def test_a_second_stop_makes_the_bound_shorter_and_never_longer(tmp_path: Path) -> None:
    end = Exit(tmp_path)
    end.resort.arm(10_000.0)
    end.resort.arm(20_000.0)
    assert end.in_c == [10_000.0 + IN_C_SECONDS]
    end.resort.arm(0.0)
    assert end.ended.wait(GUARD)
    assert end.in_c[1:] == [IN_C_SECONDS]
    assert end.codes == [1]
