"""The plain handlers of time, random numbers and checkpoints: they read the clock, draw a number, return the state.

Called by the gate. For a durable process the replay calls the gate when a call has no record, and handles checkpoints
itself. The handlers never persist anything.
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
