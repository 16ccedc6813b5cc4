"""What the runtimes of all models share. Put together by the resource manager; it does nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kernel.drivers.process import Launcher
from kernel.limits import LimitKeeper
from kernel.machine import Machine
from kernel.slots.balance import Balance
from kernel.slots.finished import FinishedGenerations
from kernel.slots.footprint import SizeBook
from kernel.slots.residency import Residency
from kernel.slots.swap import SwapArea


class ModelServices(NamedTuple):
    """What the runtimes of all models share."""

    cache: Path
    launch: Launcher
    limits: LimitKeeper
    area: SwapArea
    finished: FinishedGenerations
    book: SizeBook
    machine: Machine
    residency: Residency
    balance: Balance
