"""The objects that the runtimes of all models share. Made by the resource manager; it does nothing itself."""

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
from kernel.processes.limits import LimitEnforcer


class ModelServices(NamedTuple):
    """The objects that the runtimes of all models share. Drivers keep converted weights in `cache_folder`."""

    cache_folder: Path
    launch: Launcher
    limits: LimitEnforcer
    swap_area: SwapArea
    call_log: CallLog
    measured_sizes: MeasuredSizes
    machine: Machine
    residency: Residency
    memory_balancer: MemoryBalancer
