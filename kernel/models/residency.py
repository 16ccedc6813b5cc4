"""The residency: decides which models are in memory, one driver process each, within one budget for all.

The model runtimes ask it for memory, and notify it when they are idle or unloaded. It lets a model load if the model
fits; else it unloads the least useful idle model. If all models are busy, they take turns (`turns.py`), so that models
are not loaded back and forth. It never starts a process or touches a sequence itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ipc.errors import ModelLoadFailed
from kernel.lib.machine import Machine
from kernel.lib.units import show_size
from kernel.models.memory_budget import SMALL, MemoryBudget
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
        use yet.
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
            for runtime, request in order:
                if runtime not in self._waiting:
                    continue
                if following is None:
                    following = None if self._start_or_make_room(runtime, request) else runtime
                elif not self._overtakes(runtime, following):
                    request.turns_of = []
                    runtime.wait_for_memory(f"for memory: model {following.name} is loaded first")
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

    def _start_or_make_room(self, runtime: Resident, request: LoadRequest) -> bool:
        """Start `runtime` if there is room, else make room. Returns whether to try the next waiting model."""
        if (error := self.too_large(runtime)) is not None:
            del self._waiting[runtime]
            runtime.fail(error)
            return True
        need, room = min(runtime.footprint.minimum, self.full_budget), self.room
        if self._start_if_fits(runtime, need):
            return True
        request.turns_of, request.latest = [], None
        residents, now = self.residents(), self._loop.time()
        ending = [other for other in residents if other.state.frees_memory]
        room += sum(other.footprint.minimum for other in ending)
        if need <= room:
            runtime.wait_for_memory(f"for memory: unloading {names(ending)}")
            return False
        collate = self._settings.collate
        leaving = {
            other: departure(other, runtime, request, collate, now)
            for other in residents
            if not other.state.frees_memory
        }
        chosen: list[Resident] = []
        for other in sorted(leaving, key=lambda other: (leaving[other].due, *self.usefulness(other))):
            chosen.append(other)
            room += other.footprint.minimum
            if need <= room:
                spare = room - need
                for early in chosen[:-1]:
                    if early.footprint.minimum <= spare:  # the others free enough
                        spare -= early.footprint.minimum
                        chosen.remove(early)
                due = max(leaving[one].due for one in chosen)
                if due > now + GRAIN and self._start_if_fits(runtime, need, giving_up_kv=True):
                    return True  # rather than let it wait
                request.latest = max(leaving[one].latest for one in chosen)
                self._unload_or_wait(chosen, runtime, request, due)
                return False
        if self._start_if_fits(runtime, need, giving_up_kv=True):
            return True
        self._wait_for_other_programs(runtime, request.since, need)
        return False

    def _start_if_fits(self, runtime: Resident, need: int, *, giving_up_kv: bool = False) -> bool:
        """Start `runtime`, which needs `need` bytes, if so much is free, or if little enough is missing.

        The drivers give up KV memory for a small shortage, and with `giving_up_kv` also for a larger one.
        """
        missing, full = need - self.room, self.full_budget
        allowed = self.tolerance // 2 if self.budget == full else 0
        if giving_up_kv or missing <= SMALL * full:
            allowed = max(allowed, self.spare_kv)
        if missing > allowed:
            return False
        del self._waiting[runtime]
        runtime.start_load()
        return True

    def _overtakes(self, runtime: Resident, following: Resident) -> bool:
        """Start `runtime` before `following`, which is next and waits for turns to end. Returns whether it does so.

        It gets memory that is free, or that of an idle model. It must be loaded before `following` has waited for
        `collate` seconds, so that `following` waits for one more turn at most.
        """
        ahead, request = self._waiting.get(following), self._waiting[runtime]
        now, collate = self._loop.time(), self._settings.collate
        loaded = now + (runtime.footprint.load_seconds or 0.0)
        if ahead is None or not ahead.turns_of or loaded > ahead.since + collate:
            return False
        if self.too_large(runtime) is not None:
            return False  # it fails when it is next
        need, room = min(runtime.footprint.minimum, self.full_budget), self.room
        if self._start_if_fits(runtime, need):
            return True
        ending = [other for other in self.residents() if other.state.frees_memory]
        if ending and need <= room + sum(other.footprint.minimum for other in ending):
            request.turns_of = []
            runtime.wait_for_memory(f"for memory: unloading {names(ending)}")
            return True
        idle = [
            other
            for other in self.residents()
            if other.state.idle_since is not None and need <= room + other.footprint.minimum
        ]
        for other in sorted(idle, key=self.usefulness):
            due = departure(other, runtime, request, collate, now).due
            if due > now + GRAIN:
                self._set_timer(due)
                continue
            request.turns_of = []
            runtime.wait_for_memory(f"for memory: unloading {other.name}")
            other.unload(f"made room for {runtime.name}")
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
            other.unload(f"made room for {runtime.name}")

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
