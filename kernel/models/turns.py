"""The rule of turns: when a model in memory leaves for another model that waits.

Called by the residency, which carries it out. A turn is the time that a model stays in memory. The rule reads states,
sizes and priorities; it never loads or unloads a model, and sets no timer.
"""

from __future__ import annotations

from typing import NamedTuple

from kernel.lib.wording import listed, quoted
from kernel.models.resident import Resident

# An idle model stays in memory for this part of its load time, although another model waits: its next call may be near.
# Keeping it makes the other model wait; unloading it may cost another load. As in the ski rental problem, it stays
# until the time lost so far is a fixed part of the time of a load.
LINGER = 0.5
# A model that was just loaded and has calls stays for this part of `collate`, or for its load time if that is longer.
# No model waits longer than this part of `collate` for models that are idle.
LEAST_TURN = 0.5
# A load may be given up for another model that waits, after the longest of these times: `collate`, the allowance of
# `ModelState.load_allowance`, and `SLOW_LOAD` times the last load time of the model (`FIRST_LOAD` seconds if it was
# never loaded).
SLOW_LOAD = 3.0
FIRST_LOAD = 60.0
AGING = 0.1  # priorities that a waiting model gains per second
MAX_NAMED = 5  # models that a text names


class Departure(NamedTuple):
    """When a model has to leave for another one.

    `due`: the loop time if nothing changes. `latest`: the loop time even if the model gets calls all the time.
    """

    due: float
    latest: float


class LoadRequest:
    """A model that waits for memory since the loop time `since`.

    `turns_of`: the models whose turns it waits for, and `latest`: when these have ended at the latest, None if that
    is not known.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.turns_of: list[Resident] = []
        self.latest: float | None = None
        self._idle_before: dict[Resident, float] = {}  # the idle seconds of models in memory, when they were first seen

    def idle_behind(self, other: Resident) -> float:
        """The seconds for which it has waited while `other` was idle."""
        idle = other.state.idle_seconds
        return idle - self._idle_before.setdefault(other, idle)


def urgency(runtime: Resident, request: LoadRequest, now: float) -> float:
    """A model that waits is the more urgent, the higher the priority of its calls, and the longer it has waited."""
    return (runtime.priority or 0) + AGING * (now - request.since)


def least_turn(runtime: Resident, collate: float) -> float:
    """Seconds for which a model stays once it was loaded, as long as it has calls."""
    return max(LEAST_TURN * collate, runtime.footprint.load_seconds or 0.0)


def linger(runtime: Resident, collate: float) -> float:
    """Seconds for which an idle model stays although another model waits."""
    return min(LINGER * (runtime.footprint.load_seconds or 0.0), LEAST_TURN * collate)


def departure(other: Resident, runtime: Resident, request: LoadRequest, collate: float, now: float) -> Departure:
    """When `other`, which is in memory, leaves for `runtime`, which waits.

    - A model with calls stays until its least turn is over. Unless `runtime` has a call of a higher priority than all
      of its own, it also stays until `runtime` has waited for `collate` seconds, so that the calls of `runtime` gather.
    - An idle model stays until `runtime` has lost the seconds of `linger` by waiting for it to get calls.
    - A model that is still loading stays for the allowance of a load, or leaves at once if no call waits for it.
    """
    state, load_seconds = other.state, other.footprint.load_seconds
    idle_behind = request.idle_behind(other)
    if other.priority is None and state.ready_at is None:
        return Departure(now, now)
    if state.turn_began is None:
        usual = FIRST_LOAD if load_seconds is None else SLOW_LOAD * load_seconds
        due = max((state.load_began or now) + max(collate, usual, state.load_allowance), now)
        return Departure(due, due)
    due = state.turn_began + least_turn(other, collate)
    if other.priority is None or (runtime.priority or 0) <= other.priority:
        due = max(due, request.since + collate)
    due -= min(state.unload_seconds, collate / 4)  # so that the memory is free in time
    latest = max(due, now)
    if state.idle_since is not None:
        patience = linger(other, collate)
        due = min(due, state.idle_since + patience, now + patience - idle_behind)
    return Departure(max(due, now), latest)


def describe_wait(request: LoadRequest, now: float) -> str:
    """The turns that a model waits for, with the time that they take at most; empty if it waits for none."""
    if not request.turns_of or request.latest is None:
        return ""
    return f"for memory: {turns_text(request.turns_of)} ({max(request.latest - now, 0):.0f} s at most)"


def turns_text(others: list[Resident]) -> str:
    """The turns that a model waits for, without a time, so that the stream of a waiting call shows them once."""
    loading = [other for other in others if other.state.turn_began is None]
    busy = [other for other in others if other not in loading and other.state.idle_since is None]
    if busy:
        return f"waits for {names(busy)} to finish {'its turn' if len(busy) == 1 else 'their turns'}"
    if loading:
        return f"waits for {names(loading)}, still being loaded"
    return f"waits for {names(others)}, idle, as the next call may be near"


def names(runtimes: list[Resident]) -> str:
    """The names of models, in order, for people: of many models, the first ones."""
    return listed(sorted(quoted(runtime.name) for runtime in runtimes)[:MAX_NAMED], len(runtimes))
