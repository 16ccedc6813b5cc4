"""The residency: decides which models are in memory, one driver process each, within one budget for all.

The model runtimes ask it for memory, and notify it when they are idle or unloaded. It lets a model load if the model
fits; else it unloads the least useful idle model. If all models are busy, they take turns: the calls for an unloaded
model gather for a while (`collate`), so that models are not loaded back and forth. It never starts a process or touches
a sequence itself.
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

GRAIN = 0.001  # seconds by which a timer may fire early
# An idle model stays in memory for this part of its load time, although another model waits: its next call may be near.
# Keeping it makes the other model wait; unloading it may cost another load. As in the ski rental problem, it stays
# until the time lost so far is a fixed part of the time of a load.
LINGER = 0.5
# A turn is the time that a model stays in memory. A model that was just loaded stays for this part of `collate`, or for
# its load time if that is longer.
LEAST_TURN = 0.5
# A load may be given up for another model that waits, after the longest of these times: `collate`, the allowance of
# `ModelState.load_allowance`, and `SLOW_LOAD` times the last load time of the model (`FIRST_LOAD` seconds if it was
# never loaded).
SLOW_LOAD = 3.0
FIRST_LOAD = 60.0
RESERVE = 0.05  # part of the machine's memory that no driver may use
PRESSURE = 0.1  # memory is short if less than this part of the machine's memory is available
SMOOTHING = 0.5  # weight of the past in the available memory


class Resident(Protocol):
    """The runtime of a model, in memory or not, as the residency and the memory balancer see it."""

    name: str
    spec: ModelSpec
    state: ModelState
    footprint: Footprint
    rules: SlotRules

    @property
    def pid(self) -> int | None:
        """The process id of the driver, None while there is none."""

    @property
    def cores(self) -> list[int]:
        """The processors of the driver; empty for all."""

    @property
    def takes_memory(self) -> bool:
        """Whether its driver is, or soon will be, in memory."""

    def start_load(self) -> None:
        """There is room: start a driver."""

    def wait_for_memory(self, reason: str) -> None:
        """There is no room yet; show `reason` to the callers that wait."""

    def unload(self, why: str) -> None:
        """Swap out its sequences and stop the driver. The sequences go on when the model is loaded again."""

    def fail(self, error: LlmosError) -> None:
        """It cannot be loaded: end every call that waits for it with `error`."""

    def resize(self, kv_memory: int, cause: str) -> None:
        """Set the KV memory of the driver to `kv_memory` bytes."""


class Residency:
    """The models that are in memory or wait for it. `runtimes` returns all models."""

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
        self._waiting: dict[Resident, float] = {}  # models that wait to be loaded, since when; longest wait first
        self._timer: asyncio.TimerHandle | None = None
        self._rescheduling = False
        self.sample = machine.sample(())
        self._available = float(self.sample.memory_available)

    def set_resources(self, settings: ResourceSettings) -> None:
        """Decide by these settings from now on."""
        self._settings = settings
        self.reschedule()

    # ---- for the runtimes

    def request_load(self, runtime: Resident) -> None:
        """Load `runtime` as soon as there is room: calls its `start_load`, or `wait_for_memory` with the reason."""
        self._waiting.setdefault(runtime, self._loop.time())
        self.reschedule()

    @property
    def due_at(self) -> float | None:
        """The loop time at which it decides again if nothing changes before; None if only a change can help."""
        return None if self._timer is None else self._timer.when()

    def withdraw_request(self, runtime: Resident) -> None:
        """Take back the request to load `runtime`, if there is one."""
        self._waiting.pop(runtime, None)

    def reschedule(self) -> None:
        """Load waiting models that fit, and make room for the next. Called when a model became idle or was unloaded."""
        if self._rescheduling or not self._waiting:
            return
        self._rescheduling = True
        try:
            waiting = tuple(self._waiting.items())
            for place, (runtime, since) in enumerate(waiting):
                if not self._start_or_make_room(runtime, since):
                    for behind, _ in waiting[place + 1 :]:
                        if behind in self._waiting:
                            behind.wait_for_memory(f"for memory: model {runtime.name} is loaded first")
                    break
        finally:
            self._rescheduling = False

    def cores(self, runtime: Resident) -> list[int]:
        """The processors for a driver that starts now: an equal share, the least used ones. Empty for all."""
        others = [other for other in self.residents() if other is not runtime]
        if not others:
            return []
        cores = self._machine.cores
        users = {core: sum(core in (other.cores or cores) for other in others) for core in cores}
        count = max(len(cores) // (len(others) + 1), 1)
        return sorted(sorted(cores, key=lambda core: (users[core], -core))[:count])

    # ---- memory

    def observe(self, sample: MachineSample) -> None:
        """Take in a sample of the machine. The available memory is smoothed, the memory of drivers is not."""
        self.sample = sample
        for runtime in self._runtimes():
            if runtime.pid is not None:
                runtime.footprint.rss = sample.rss.get(runtime.pid, runtime.footprint.rss)
        self._available = SMOOTHING * self._available + (1 - SMOOTHING) * sample.memory_available

    @property
    def full_budget(self) -> int:
        """Bytes for all drivers together, as configured."""
        return self._settings.budget(self.sample.memory_total)

    @property
    def budget(self) -> int:
        """Bytes for all drivers together now: as configured, or as many as the machine can give if that is less."""
        taken = sum(runtime.footprint.rss for runtime in self._runtimes())
        left = self._available - RESERVE * self.sample.memory_total
        return max(min(self.full_budget, int(taken + left)), 0)

    def shortage(self) -> str:
        """Evidence that the operating system has just killed a process for lack of memory; empty if there is none."""
        sample = self.sample
        if self._machine.oom_kills() > sample.oom_kills:
            return "the operating system killed a process for lack of memory"
        if min(self._available, sample.memory_available) >= PRESSURE * sample.memory_total:
            return ""
        return f"{show_size(sample.memory_available)} of {show_size(sample.memory_total)} was free"

    @property
    def room(self) -> int:
        """The budget less the `minimum` of each model in memory, in bytes; negative if they exceed the budget."""
        return self.budget - sum(runtime.footprint.minimum for runtime in self.residents())

    def residents(self) -> list[Resident]:
        """The models in memory, and those that are being loaded or unloaded."""
        return [runtime for runtime in self._runtimes() if runtime.takes_memory]

    def too_large(self, runtime: Resident) -> LlmosError | None:
        """The error for `runtime` if it alone takes more memory than all drivers together may take, else None."""
        need = runtime.footprint.without_kv
        if need <= self.full_budget:
            return None
        return ModelLoadFailed(
            f"model {runtime.name} takes {show_size(need)}, but all drivers together may take "
            f"{show_size(self.full_budget)}; raise resources.memory in the settings, or use a smaller model"
        )

    def unload_excess(self) -> None:
        """If the drivers exceed the budget, unload idle models, the least useful first.

        If that is not enough, unload one busy model as well: the one that has been ready longest, if its least
        turn is over.
        """
        over, residents = -self.room, self.residents()
        if over <= 0 or any(runtime.state.frees_memory for runtime in residents):
            return
        if len(residents) == 1 and self.budget == self.full_budget:
            return  # it has grown since it was loaded, and no other model or program needs the memory
        why = f"memory is short by {show_size(over)}"
        ready = [runtime for runtime in residents if runtime.state.ready_at is not None]
        for runtime in sorted(ready, key=self.usefulness):
            if over > 0 and runtime.state.idle_since is not None:
                over -= runtime.footprint.minimum
                runtime.unload(why)
        turn = self._loop.time() - LEAST_TURN * self._settings.collate
        busy = [runtime for runtime in ready if runtime.state.ready_at is not None and runtime.state.ready_at <= turn]
        if over > 0 and len(residents) > 1 and busy:
            min(busy, key=lambda runtime: runtime.state.ready_at or 0.0).unload(why)

    # ---- making room

    def _start_or_make_room(self, runtime: Resident, since: float) -> bool:
        """Start `runtime` if there is room, else make room. Returns whether to try the next waiting model."""
        need, room = min(runtime.footprint.minimum, self.full_budget), self.room
        if (error := self.too_large(runtime)) is not None:
            del self._waiting[runtime]
            runtime.fail(error)
            return True
        if need <= room:
            del self._waiting[runtime]
            runtime.start_load()
            return True
        residents = self.residents()
        ending = [other for other in residents if other.state.frees_memory]
        room += sum(other.footprint.minimum for other in ending)
        if need <= room:
            runtime.wait_for_memory(f"for memory: unloading {_names(ending)}")
            return False
        due = {other: self._unload_due_at(other, since) for other in residents if not other.state.frees_memory}
        chosen: list[Resident] = []
        for other in sorted(due, key=lambda other: (due[other], *self.usefulness(other))):
            chosen.append(other)
            room += other.footprint.minimum
            if need <= room:
                spare = room - need
                for early in chosen[:-1]:
                    if early.footprint.minimum <= spare:  # the others free enough
                        spare -= early.footprint.minimum
                        chosen.remove(early)
                self._unload_or_wait(chosen, runtime, max(due[one] for one in chosen))
                return False
        self._wait_for_other_programs(runtime, since, need)
        return False

    def usefulness(self, runtime: Resident) -> tuple[bool, float]:
        """A sort key that puts the least useful model first.

        Idle models come before busy ones, ordered by idle time in proportion to load time, the longest first.
        """
        if runtime.state.idle_since is None:
            return True, 0.0
        idle = self._loop.time() - runtime.state.idle_since
        return False, -idle / max(runtime.footprint.load_seconds or 0.0, 0.01)

    def _unload_or_wait(self, chosen: list[Resident], runtime: Resident, due: float) -> None:
        """Unload `chosen` to make room for `runtime` if the time `due` has come, else set a timer for it."""
        if due > self._loop.time() + GRAIN:
            runtime.wait_for_memory(f"for memory: the turn of {_names(chosen)} has not ended yet")
            self._set_timer(due)
            return
        runtime.wait_for_memory(f"for memory: unloading {_names(chosen)}")
        for other in chosen:
            other.unload(f"made room for {runtime.name}")

    def _unload_due_at(self, other: Resident, since: float) -> float:
        """The time at which to unload `other` for a model that has waited since `since`."""
        now, collate = self._loop.time(), self._settings.collate
        load_seconds = other.footprint.load_seconds
        if other.state.turn_began is None:  # it is still loading
            usual = FIRST_LOAD if load_seconds is None else SLOW_LOAD * load_seconds
            return (other.state.load_began or now) + max(collate, usual, other.state.load_allowance)
        lead = min(other.state.unload_seconds, collate / 4)  # so that the memory is free in time
        turn = max(LEAST_TURN * collate, load_seconds or 0.0)
        due = max(since + collate, other.state.turn_began + turn) - lead
        if other.state.idle_since is not None:
            due = min(due, other.state.idle_since + LINGER * (load_seconds or 0.0))
        return max(due, now)

    def _wait_for_other_programs(self, runtime: Resident, since: float, need: int) -> None:
        """Wait for other programs on the machine to free memory, for `load_timeout` seconds; then fail `runtime`."""
        limit = since + runtime.spec.load_timeout
        text = f"it needs {show_size(need)}, but other programs on this machine leave less than that free"
        if self._loop.time() < limit - GRAIN:
            runtime.wait_for_memory(f"for memory: {text}")
            self._set_timer(limit)
            return
        del self._waiting[runtime]
        runtime.fail(ModelLoadFailed(f"model {runtime.name} waited {runtime.spec.load_timeout:g} s for memory: {text}"))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when != float("inf"):
            self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.reschedule()

    def close(self) -> None:
        """Forget all waiting models, and load no more."""
        self._waiting.clear()
        self._set_timer(float("inf"))


def _names(runtimes: list[Resident]) -> str:
    return " and ".join(sorted(runtime.name for runtime in runtimes))
