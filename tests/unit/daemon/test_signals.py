"""The signals of the daemon reach its loop. Each test runs in a process of its own, whose signals it may change."""

from __future__ import annotations

import subprocess
import sys

AFTER_THE_LOOP = """
import asyncio, os, signal
from kernel.event_loop.guarded import GuardedLoop
from llmosd.daemon.signals import Signals

async def main():
    arrived = asyncio.Queue()
    Signals().attach(arrived.put_nowait)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # as the loop does whenever it begins to run
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.raise_signal(number)
        assert await asyncio.wait_for(arrived.get(), 60) == number

asyncio.Runner(loop_factory=GuardedLoop).run(main())
print("both arrived", flush=True)
"""


def test_signals_arrive_after_the_loop_has_taken_the_wakeup_descriptor() -> None:
    command = [sys.executable, "-c", AFTER_THE_LOOP]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.stdout, ended.returncode) == ("both arrived\n", 0), ended.stderr
