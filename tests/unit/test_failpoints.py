"""Failpoints: a fault happens exactly where and when it is armed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipc.errors import ConfigError
from kernel.lib import failpoints

pytestmark = [pytest.mark.real_time, pytest.mark.usefixtures("disarmed")]


def arm(text: str) -> None:
    failpoints.arm({failpoints.VARIABLE: text})


def fails(name: str) -> bool:
    try:
        failpoints.point(name)
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def test_nothing_is_armed_unless_it_is_asked_for() -> None:
    assert failpoints.arm({}) == []
    assert not any(fails(name) for name in failpoints.POINTS)
    assert not failpoints.needs_shim()


@pytest.mark.parametrize(
    ("passings", "failing"),
    [("", [0, 1, 2, 3, 4]), ("@2", [1]), ("@2-3", [1, 2]), ("@4-", [3, 4])],
)
def test_the_passings_that_are_meant(passings: str, failing: list[int]) -> None:
    arm(f"journal.begin=ENOSPC{passings}")
    assert [number for number in range(5) if fails("journal.begin")] == failing
    assert not fails("journal.commit")


def test_a_fault_that_hangs_on_a_file_counts_only_while_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "full"
    arm(f"journal.begin=ENOSPC@2-?{file}")
    assert not any(fails("journal.begin") for _ in range(3))
    file.touch()
    assert [fails("journal.begin") for _ in range(3)] == [False, True, True]
    file.unlink()
    assert not fails("journal.begin")


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_the_clock_jumps_and_is_put_right(jump: int) -> None:
    before = time.time()
    arm(f"clock=jump:{jump}@3-")
    assert [round((time.time() - before) / 3600) for _ in range(4)] == [0, 0, jump // 3600, jump // 3600]
    failpoints.disarm()
    assert round((time.time() - before) / 3600) == 0


def test_the_process_dies_at_the_point_as_by_kill_9() -> None:
    code = (
        "from kernel.lib import failpoints; failpoints.arm(); failpoints.point('swap.write'); "
        "print('once', flush=True); failpoints.point('swap.write'); print('twice')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {failpoints.VARIABLE: "swap.write=die@2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (-signal.SIGKILL, "once\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "is not POINT=ACTION"),
        ("journal.nowhere=die", "no point 'journal.nowhere'; known points: clock, "),
        ("journal.begin=explode", "no action 'explode'"),
        ("journal.begin=torn", "no action 'torn'"),
        ("clock=die", "no action 'die'"),
        ("clock=jump:1.2.3", "is not a number"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arm(text)
