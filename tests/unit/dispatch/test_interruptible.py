"""Tests of the part of the watchdog that decides where it may interrupt code."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

from kernel.dispatch.interruptible import Interruptible


def test_a_start_while_other_threads_import_fails_at_nothing() -> None:
    stop = threading.Event()

    def importing() -> None:
        while not stop.is_set():
            for number in range(100):
                sys.modules[f"imported_{number}"] = ModuleType("imported")
            for number in range(100):
                del sys.modules[f"imported_{number}"]

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=importing)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(200):
            Interruptible().start()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
