"""Residency: which models are in memory, one driver process each, within one budget for all.

Asked by the model runtimes for memory, and told when they are idle or gone. It loads what fits; makes room by unloading
the idle model that is of least use; and where all are busy, gives each its turn, so that waiting calls are collated by
model instead of loading models back and forth. It starts no process itself and touches no sequence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from ipc.errors import LlmosError, ModelLoadFailed
from kernel.lib.machine import Machine, MachineSample
from kernel.lib.units import show_size
from kernel.models.footprint import Footprint
from kernel.models.settings import ResourceSettings
from kernel.models.slot_rules import SlotRules
from kernel.models.spec import ModelSpec
from kernel.models.state import ModelState

GRAIN = 0.001  # seconds by which a timer may strike early
LINGER = 0.5  # of the time that loading it took: so long an idle model is kept though another waits (ski rental)
LEAST_TURN = 0.5  # of `collate`: a model that was just loaded is kept so long, or as long as that took if it was longer
SLOW_LOAD = 3.0  # times what a load took last: after that another model that waits goes first,
FIRST_LOAD = 60.0  # or after so many seconds, if it was never loaded; and after twice as long each time
RESERVE = 0.05  # of the machine's memory, which drivers never count on
PRESSURE = 0.1  # of the machine's memory: less than that available is a shortage
SMOOTHING = 0.5  # weight of the past in what is available


class Resident(Protocol):
    """What the residency and the memory balance need of the runtime of a model."""

    name: str
    spec: ModelSpec
    state: ModelState
    footprint: Footprint
    rules: SlotRules

    @property
    def pid(self) -> int | None:
        """The process of the driver."""

    @property
    def cores(self) -> list[int]:
        """The processors of the driver; none for all."""

    @property
    def takes_memory(self) -> bool:
        """Whether its driver is, or soon will be, in memory."""

    def start(self) -> None:
        """There is room: load."""

    def wait(self, reason: str) -> None:
        """There is no room yet, for a reason to show."""

    def leave(self, why: str) -> None:
        """Give the memory back, and go on where it stopped when it is loaded again."""

    def fail(self, error: LlmosError) -> None:
        """It cannot be loaded: answer everything that waits for it with `error`."""

    def resize(self, kv_memory: int, cause: str) -> None:
        """From now on the driver has so many bytes for keys and values."""


class Residency:
    """The models that are in memory or wait for it. `runtimes` answers all there are."""

    def __init__(
        self,
        settings: ResourceSettings,
        machine: Machine,
        runtimes: Callable[[], Iterable[Resident]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._runtimes = runtimes
        self._loop = loop
        self._waiting: dict[Resident, float] = {}  # since when, the longest first
        self._timer: asyncio.TimerHandle | None = None
        self._reviewing = False
        self.sample = machine.sample(())
        self._available = float(self.sample.memory_available)

    # ---- for the runtimes

    def want(self, runtime: Resident) -> None:
        """`runtime` is to be loaded as soon as there is room. It is told by `start`, or why not by `wait`."""
        self._waiting.setdefault(runtime, self._loop.time())
        self.reschedule()

    def forget(self, runtime: Resident) -> None:
        """`runtime` need not be loaded any more."""
        self._waiting.pop(runtime, None)

    def reschedule(self) -> None:
        """Load, and make room, as far as that can be done now. Called whenever a model became idle or has gone."""
        if self._reviewing or not self._waiting:
            return
        self._reviewing = True
        try:
            for runtime, since in tuple(self._waiting.items()):
                if not self._place(runtime, since):
                    break
        finally:
            self._reviewing = False

    def cores(self, runtime: Resident) -> list[int]:
        """The processors for a driver that starts now: an equal part of all, of those that others use least."""
        others = [other for other in self.residents() if other is not runtime]
        if not others:
            return []
        cores = self._machine.cores
        users = {core: sum(core in (other.cores or cores) for other in others) for core in cores}
        count = max(len(cores) // (len(others) + 1), 1)
        return sorted(sorted(cores, key=lambda core: (users[core], -core))[:count])

    # ---- memory

    def observe(self, sample: MachineSample) -> None:
        """A new look at the machine: what is available is smoothed, what drivers take is not."""
        self.sample = sample
        for runtime in self._runtimes():
            if runtime.pid is not None:
                runtime.footprint.rss = sample.rss.get(runtime.pid, runtime.footprint.rss)
        self._available = SMOOTHING * self._available + (1 - SMOOTHING) * sample.memory_available

    @property
    def full_budget(self) -> int:
        """Bytes for all drivers, as they are set."""
        return self._settings.budget(self.sample.memory_total)

    @property
    def budget(self) -> int:
        """Bytes for all drivers now: what is set, or what the machine has left if that is less."""
        taken = sum(runtime.footprint.rss for runtime in self._runtimes())
        left = self._available - RESERVE * self.sample.memory_total
        return max(min(self.full_budget, int(taken + left)), 0)

    def shortage(self) -> str:
        """What speaks for a process having been killed for want of memory just now; nothing if nothing does."""
        sample = self.sample
        if self._machine.oom_kills() > sample.oom_kills:
            return "the system killed a process for want of it"
        if min(self._available, sample.memory_available) >= PRESSURE * sample.memory_total:
            return ""
        return f"{show_size(sample.memory_available)} of {show_size(sample.memory_total)} were free"

    @property
    def room(self) -> int:
        """Bytes that nobody takes or is promised; less than none if drivers have outgrown the budget."""
        return self.budget - sum(runtime.footprint.least for runtime in self.residents())

    def residents(self) -> list[Resident]:
        """Those in memory, or on their way there or away."""
        return [runtime for runtime in self._runtimes() if runtime.takes_memory]

    def too_large(self, runtime: Resident) -> LlmosError | None:
        """The error for `runtime` if it alone takes more than all drivers may, else None."""
        need = runtime.footprint.body
        if need <= self.full_budget:
            return None
        return ModelLoadFailed(
            f"model {runtime.name} takes {show_size(need)}, and all drivers together may take "
            f"{show_size(self.full_budget)}; raise resources.memory in the settings, or use a smaller model"
        )

    def shed(self) -> None:
        """If drivers take more than they may, unload those of least use: idle ones, or one of several busy ones."""
        over, residents = -self.room, self.residents()
        if over <= 0 or any(runtime.state.leaving for runtime in residents):
            return
        if len(residents) == 1 and self.budget == self.full_budget:
            return  # it has outgrown what it took when it was loaded, and is in nobody's way
        why = f"memory is short by {show_size(over)}"
        ready = [runtime for runtime in residents if runtime.state.ready_at is not None]
        for runtime in sorted(ready, key=self.usefulness):
            if over > 0 and runtime.state.idle_since is not None:
                over -= runtime.footprint.least
                runtime.leave(why)
        turn = self._loop.time() - LEAST_TURN * self._settings.collate
        busy = [runtime for runtime in ready if runtime.state.ready_at is not None and runtime.state.ready_at <= turn]
        if over > 0 and len(residents) > 1 and busy:
            min(busy, key=lambda runtime: runtime.state.ready_at or 0.0).leave(why)

    # ---- making room

    def _place(self, runtime: Resident, since: float) -> bool:
        """Start `runtime` if there is room, else do what makes some. Whether the next may be looked at."""
        need, room = min(runtime.footprint.least, self.full_budget), self.room
        if (error := self.too_large(runtime)) is not None:
            del self._waiting[runtime]
            runtime.fail(error)
            return True
        if need <= room:
            del self._waiting[runtime]
            runtime.start()
            return True
        residents = self.residents()
        leaving = [other for other in residents if other.state.leaving]
        room += sum(other.footprint.least for other in leaving)
        if need <= room:
            runtime.wait(f"for memory: {_names(leaving)} leaves")
            return False
        due = {other: self._due(other, since) for other in residents if not other.state.leaving}
        chosen: list[Resident] = []
        for other in sorted(due, key=lambda other: (due[other], *self.usefulness(other))):
            chosen.append(other)
            room += other.footprint.least
            if need <= room:
                spare = room - need
                for early in chosen[:-1]:
                    if early.footprint.least <= spare:  # the later ones do without it
                        spare -= early.footprint.least
                        chosen.remove(early)
                self._make_leave(chosen, runtime, max(due[one] for one in chosen))
                return False
        self._starved(runtime, since, need)
        return False

    def usefulness(self, runtime: Resident) -> tuple[bool, float]:
        """A key that puts first who is of least use: who is idle for longest, by what it costs to load it again."""
        if runtime.state.idle_since is None:
            return True, 0.0
        idle = self._loop.time() - runtime.state.idle_since
        return False, -idle / max(runtime.footprint.load_seconds or 0.0, 0.01)

    def _make_leave(self, chosen: list[Resident], runtime: Resident, due: float) -> None:
        """Let `chosen` leave for `runtime` if the last of them is `due`, else look again then."""
        if due > self._loop.time() + GRAIN:
            runtime.wait(f"for memory: {_names(chosen)} has its turn")
            self._look_again(due)
            return
        runtime.wait(f"for memory: {_names(chosen)} leaves")
        for other in chosen:
            other.leave(f"made room for {runtime.name}")

    def _due(self, other: Resident, since: float) -> float:
        """When `other` has to leave for a model that has waited `since` then."""
        now, collate = self._loop.time(), self._settings.collate
        load_seconds = other.footprint.load_seconds
        if other.state.turn_began is None:  # it loads
            usual = FIRST_LOAD if load_seconds is None else SLOW_LOAD * load_seconds
            return (other.state.load_began or now) + max(collate, usual, other.state.load_patience)
        lead = min(other.state.leave_seconds, collate / 4)
        turn = max(LEAST_TURN * collate, load_seconds or 0.0)
        due = max(since + collate, other.state.turn_began + turn) - lead
        if other.state.idle_since is not None:
            due = min(due, other.state.idle_since + LINGER * (load_seconds or 0.0))
        return max(due, now)

    def _starved(self, runtime: Resident, since: float, need: int) -> None:
        """Not even an empty house has room for `runtime`: something else on this machine takes the memory."""
        limit = since + runtime.spec.load_timeout
        text = f"{show_size(need)} are needed, and other programs leave less than that"
        if self._loop.time() < limit - GRAIN:
            runtime.wait(f"for memory: {text}")
            self._look_again(limit)
            return
        del self._waiting[runtime]
        runtime.fail(ModelLoadFailed(f"model {runtime.name} waited {runtime.spec.load_timeout:g} s for memory: {text}"))

    def _look_again(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when != float("inf"):
            self._timer = self._loop.call_at(when, self._timed_review)

    def _timed_review(self) -> None:
        self._timer = None
        self.reschedule()

    def close(self) -> None:
        """Load nothing more."""
        self._waiting.clear()
        self._look_again(float("inf"))


def _names(runtimes: list[Resident]) -> str:
    return " and ".join(sorted(runtime.name for runtime in runtimes))
