"""The residency: decides which models are in memory, one driver process each, within one budget for all.

The model runtimes ask it for memory, and notify it when they are idle or unloaded. It lets a model load if the model
fits; else it unloads the least useful idle model. If all models are busy, they take turns (`turns.py`), so that models
are not loaded back and forth. It never starts a process or touches a sequence itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ipc.errors import LlmosError, ModelLoadFailed
from kernel.lib.machine import Machine
from kernel.lib.units import show_size
from kernel.models.memory_budget import SMALL, MemoryBudget, Supply
from kernel.models.resident import Resident
from kernel.models.settings import ResourceSettings
from kernel.models.turns import (
    LEAST_TURN,
    LoadRequest,
    departure,
    describe_wait,
    least_turn,
    names,
    turns_text,
    urgency,
)

GRAIN = 0.001  # seconds by which a timer may fire early


class Residency(MemoryBudget):
    """The models that are in memory or wait for it. `runtimes` returns all models."""

    def __init__(
        self,
        settings: ResourceSettings,
        machine: Machine,
        runtimes: Callable[[], Iterable[Resident]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(settings, machine, runtimes)
        self._loop = loop
        self._waiting: dict[Resident, LoadRequest] = {}  # the models that wait to be loaded
        self._timer: asyncio.TimerHandle | None = None
        self._rescheduling = False
        self._changes = 0  # models started or unloaded so far

    def set_resources(self, settings: ResourceSettings) -> None:
        """Decide by these settings from now on."""
        self._settings = settings
        self.reschedule()

    # ---- for the runtimes

    def request_load(self, runtime: Resident) -> None:
        """Load `runtime` as soon as there is room: calls its `start_load`, or `wait_for_memory` with the reason."""
        self._waiting.setdefault(runtime, LoadRequest(self._loop.time()))
        self.reschedule()

    @property
    def due_at(self) -> float | None:
        """The loop time at which it decides again if nothing changes before; None if only a change can help."""
        return None if self._timer is None else self._timer.when()

    def withdraw_request(self, runtime: Resident) -> None:
        """Take back the request to load `runtime`, if there is one."""
        if self._waiting.pop(runtime, None) is not None:
            self.reschedule()

    def reschedule(self) -> None:
        """Load waiting models that fit, and make room for the next. Called when a model became idle or was unloaded.

        The most urgent model is next. A model behind it is loaded meanwhile if there is memory that the next one cannot
        use yet. A model that waits for other programs on the machine to free memory holds up no other one.
        """
        if self._rescheduling or not self._waiting:
            return
        self._rescheduling = True
        try:
            self._stop_timer()
            now = self._loop.time()
            # Equally urgent models stay in the order of their requests.
            order = sorted(self._waiting.items(), key=lambda item: -urgency(item[0], item[1], now))
            following: Resident | None = None  # the most urgent model that has to wait
            supply, changes = self.supply(), self._changes
            for runtime, request in order:
                if runtime not in self._waiting:
                    continue
                if following is None:
                    following = None if self._start_or_make_room(runtime, request, supply) else runtime
                else:
                    self._overtake_or_wait(runtime, request, following, supply)
                if self._changes != changes:
                    supply, changes = self.supply(), self._changes
        finally:
            self._rescheduling = False

    def why_waiting(self, runtime: Resident) -> str:
        """The reason why `runtime` waits, with the seconds that this takes at most; empty if it does not wait."""
        request = self._waiting.get(runtime)
        return "" if request is None else describe_wait(request, self._loop.time()) or runtime.state.detail

    def why_leaving(self, runtime: Resident) -> str:
        """When `runtime`, which is ready, has to leave memory for another model."""
        now, idle_since = self._loop.time(), runtime.state.idle_since
        idle = "" if idle_since is None else f"idle {now - idle_since:.0f} s, "
        for other, request in self._waiting.items():
            if runtime in request.turns_of and request.latest is not None:
                soon = "soon, or if it is called, " if idle else ""
                return f"{idle}leaves for {other.name} {soon}in {max(request.latest - now, 0):.0f} s at most"
        return f"{idle}leaves when another model needs memory" if idle else ""

    def cores(self, runtime: Resident) -> list[int]:
        """The processors for a driver that starts now: an equal share, the least used ones. Empty for all."""
        others = [other for other in self.residents() if other is not runtime]
        if not others:
            return []
        cores = self._machine.cores
        users = {core: sum(core in (other.cores or cores) for other in others) for core in cores}
        count = max(len(cores) // (len(others) + 1), 1)
        return sorted(sorted(cores, key=lambda core: (users[core], -core))[:count])

    # ---- short of memory

    def unload_excess(self) -> None:
        """If the drivers exceed the budget by more than the tolerance, unload idle models, the least useful first.

        The balancer meets a small shortage by KV memory, if it can, and no model is unloaded. If idle models are not
        enough, this unloads one busy model as well: of those whose least turn is over, the one with the lowest
        priority, and of these the one whose turn is the longest.
        """
        over, residents = -self.room, self.residents()
        if over <= self.tolerance or any(runtime.state.frees_memory for runtime in residents):
            return
        if len(residents) == 1 and self.budget == self.full_budget:
            return  # it has grown since it was loaded, and no other model or program needs the memory
        small = over <= SMALL * self.full_budget
        if small and over <= self.spare_kv + self.tolerance:
            return
        why = f"memory is short by {show_size(over)}"
        ready = [runtime for runtime in residents if runtime.state.ready_at is not None]
        for runtime in sorted(ready, key=self.usefulness):
            if over > 0 and runtime.state.idle_since is not None:
                over -= runtime.footprint.minimum
                runtime.unload(why)
        if over > self.spare_kv + self.tolerance and len(residents) > 1:
            self._unload_busy(ready, why, small=small)

    def _unload_busy(self, ready: list[Resident], why: str, *, small: bool) -> None:
        """Unload one busy model whose least turn is over. For a large shortage, the time of its load does not count."""
        now, collate = self._loop.time(), self._settings.collate

        def served(runtime: Resident) -> bool:
            turn = least_turn(runtime, collate) if small else LEAST_TURN * collate
            return runtime.state.turn_began is not None and runtime.state.turn_began + turn <= now

        busy = [runtime for runtime in ready if served(runtime)]
        if busy:
            min(busy, key=lambda runtime: (runtime.priority or 0, runtime.state.turn_began or 0.0)).unload(why)

    # ---- making room

    def _start_or_make_room(self, runtime: Resident, request: LoadRequest, supply: Supply) -> bool:
        """Start `runtime` if there is room, else make room. Returns whether to try the next waiting model."""
        if (error := self.too_large(runtime)) is not None:
            self._fail(runtime, error)
            return True
        need, room, now = min(runtime.footprint.minimum, supply.full), supply.room, self._loop.time()
        if supply.fits(need):
            self._start(runtime)
            return True
        request.turns_of, request.latest = [], None
        room += supply.ending_memory
        if need <= room:
            runtime.wait_for_memory(f"for memory: unloading {names(supply.ending)}")
            return False
        if need > supply.budget:  # even if all models were unloaded
            if supply.fits(need, giving_up_kv=True):
                self._start(runtime)
            else:
                self._wait_for_other_programs(runtime, request.since, need)
            return True
        collate = self._settings.collate
        leaving = {
            other: departure(other, runtime, request, collate, now)
            for other in supply.residents
            if not other.state.frees_memory
        }
        chosen: list[Resident] = []
        for other in sorted(leaving, key=lambda other: (leaving[other].due, *self.usefulness(other))):
            chosen.append(other)
            room += other.footprint.minimum
            if need <= room:
                break
        spare = room - need
        for early in chosen[:-1]:
            if early.footprint.minimum <= spare:  # the others free enough
                spare -= early.footprint.minimum
                chosen.remove(early)
        due = max((leaving[one].due for one in chosen), default=now)
        if due > now + GRAIN and supply.fits(need, giving_up_kv=True):
            self._start(runtime)  # rather than let it wait
            return True
        request.latest = max((leaving[one].latest for one in chosen), default=now)
        self._unload_or_wait(chosen, runtime, request, due)
        return False

    def _start(self, runtime: Resident) -> None:
        self._changes += 1
        del self._waiting[runtime]
        runtime.start_load()

    def _unload(self, other: Resident, runtime: Resident) -> None:
        self._changes += 1
        other.unload(f"made room for {runtime.name}")

    def _fail(self, runtime: Resident, error: LlmosError) -> None:
        self._changes += 1
        del self._waiting[runtime]
        runtime.fail(error)

    def _overtake_or_wait(self, runtime: Resident, request: LoadRequest, following: Resident, supply: Supply) -> None:
        """Start `runtime` before `following`, which is next and waits for turns to end; or let it wait.

        It gets memory that is free, or that of an idle model. It must be loaded before `following` has waited for
        `collate` seconds, so that `following` waits for one more turn at most.
        """
        request.turns_of = []
        ahead = self._waiting.get(following)
        if ahead is not None and ahead.turns_of:
            now, need = self._loop.time(), min(runtime.footprint.minimum, supply.full)
            loaded = now + (runtime.footprint.load_seconds or 0.0)
            free, most = supply.fits(need), supply.room + max(supply.ending_memory, supply.idle_memory)
            in_time = loaded <= ahead.since + self._settings.collate
            # If it alone is too large, it fails when it is next.
            if (
                in_time
                and (free or need <= most)
                and self.too_large(runtime) is None
                and self._overtakes(runtime, request, need, supply, now)
            ):
                return
        runtime.wait_for_memory(f"for memory: model {following.name} is loaded first")

    def _overtakes(self, runtime: Resident, request: LoadRequest, need: int, supply: Supply, now: float) -> bool:
        """Start `runtime`, which needs `need` bytes, or make room for it. Returns whether it does so."""
        if supply.fits(need):
            self._start(runtime)
            return True
        if supply.ending and need <= supply.room + supply.ending_memory:
            runtime.wait_for_memory(f"for memory: unloading {names(supply.ending)}")
            return True
        idle = [
            other
            for other in supply.residents
            if other.state.idle_since is not None and need <= supply.room + other.footprint.minimum
        ]
        for other in sorted(idle, key=self.usefulness):
            due = departure(other, runtime, request, self._settings.collate, now).due
            if due > now + GRAIN:
                self._set_timer(due)
                continue
            runtime.wait_for_memory(f"for memory: unloading {other.name}")
            self._unload(other, runtime)
            return True
        return False

    def usefulness(self, runtime: Resident) -> tuple[bool, float]:
        """A sort key that puts the least useful model first.

        Idle models come before busy ones, ordered by idle time in proportion to load time, the longest first.
        """
        if runtime.state.idle_since is None:
            return True, 0.0
        idle = self._loop.time() - runtime.state.idle_since
        return False, -idle / max(runtime.footprint.load_seconds or 0.0, 0.01)

    def _unload_or_wait(self, chosen: list[Resident], runtime: Resident, request: LoadRequest, due: float) -> None:
        """Unload `chosen` to make room for `runtime` if the time `due` has come, else set a timer for it."""
        if due > self._loop.time() + GRAIN:
            request.turns_of = chosen
            runtime.wait_for_memory(f"for memory: {turns_text(chosen)}")
            self._set_timer(due)
            return
        runtime.wait_for_memory(f"for memory: unloading {names(chosen)}")
        for other in chosen:
            self._unload(other, runtime)

    def _wait_for_other_programs(self, runtime: Resident, since: float, need: int) -> None:
        """Wait for other programs on the machine to free memory, for `load_timeout` seconds; then fail `runtime`."""
        limit = since + runtime.spec.load_timeout
        text = f"it needs {show_size(need)}, but other programs on this machine leave less than that free"
        if self._loop.time() < limit - GRAIN:
            runtime.wait_for_memory(f"for memory: {text}")
            self._set_timer(limit)
            return
        self._fail(
            runtime, ModelLoadFailed(f"model {runtime.name} waited {runtime.spec.load_timeout:g} s for memory: {text}")
        )

    def _set_timer(self, when: float) -> None:
        """Reschedule at `when`, unless it does so earlier."""
        if self._timer is not None and self._timer.when() <= when:
            return
        self._stop_timer()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self.reschedule()

    def close(self) -> None:
        """Forget all waiting models, and load no more."""
        self._waiting.clear()
        self._stop_timer()
