"""The plain handlers of time, random numbers and checkpoints: they read the clock, draw, and do nothing.

Called by the gate for any process; for a durable process, by way of its replay, for calls that have no record. They
never persist anything.
"""

from __future__ import annotations

import random
import time
from typing import Any

from ipc.syscalls import Checkpoint, DrawRandom, GetTime
from kernel.core.process import Process
from kernel.gate import Gate


def register(gate: Gate) -> None:
    """Add the calls to the gate."""
    gate.register({GetTime: _time, DrawRandom: _random, Checkpoint: _checkpoint})


def _time(process: Process, call: GetTime) -> float:
    return time.time()


def _random(process: Process, call: DrawRandom) -> float:
    return random.random()


def _checkpoint(process: Process, call: Checkpoint) -> Any:
    return call.state
