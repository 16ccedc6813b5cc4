"""What time, random numbers and checkpoints are to a process that is not durable: the plain ones, and nothing at all.

Its handlers are called by the gate, also by the replay of a durable process for what is not in the journal yet.
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
