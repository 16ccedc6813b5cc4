"""What the runtimes of all models share. Put together by the resource manager; it does nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kernel.drivers.process import Launcher
from kernel.lib.machine import Machine
from kernel.models.call_log import CallLog
from kernel.models.footprint import MeasuredSizes
from kernel.models.memory_balancer import MemoryBalancer
from kernel.models.residency import Residency
from kernel.models.swap import SwapArea
from kernel.processes.limits import LimitKeeper


class ModelServices(NamedTuple):
    """What the runtimes of all models share."""

    cache: Path
    launch: Launcher
    limits: LimitKeeper
    area: SwapArea
    finished: CallLog
    book: MeasuredSizes
    machine: Machine
    residency: Residency
    balance: MemoryBalancer
