"""A workload: tasks, and the calls that each task makes, one after another or side by side.

Made by the generators and by the readers of traces and recordings; run by a simulation. It holds data and decides
nothing.
"""

from __future__ import annotations

import msgspec

from ipc.errors import InvalidWorkload


class WorkloadCall(msgspec.Struct, frozen=True, kw_only=True):
    """One model call: `prompt` tokens to read, and `tokens` to make, at least one.

    `after` holds the places of earlier calls of the task. This call is made `wait` seconds (think time, or a tool)
    after the last of these has ended; if `after` is empty, after the arrival of the task. `limit`: the bound on its
    tokens that a policy may know, 0 for none. `priority` replaces the priority of the task unless it is None.
    """

    prompt: int
    tokens: int
    wait: float = 0.0
    after: tuple[int, ...] = ()
    limit: int = 0
    priority: int | None = None


class WorkloadTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task: it arrives `arrival` seconds after the start and makes `calls`. To policies it is a scheduling group.

    `deadline`: seconds from its arrival after which it is ended, as in the daemon. `weight`: the weight of its owner.
    """

    arrival: float
    calls: tuple[WorkloadCall, ...]
    name: str = ""
    owner: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline: float | None = None

    @property
    def tokens(self) -> int:
        """The tokens that all calls of the task make."""
        return sum(call.tokens for call in self.calls)


def chain(calls: list[WorkloadCall]) -> tuple[WorkloadCall, ...]:
    """`calls`, each of which is made after the previous one has ended."""
    return tuple(msgspec.structs.replace(call, after=(place - 1,) if place else ()) for place, call in enumerate(calls))


def check(tasks: list[WorkloadTask]) -> None:
    """Raises `InvalidWorkload`, which names the first task that cannot be simulated, and why."""
    if not tasks:
        raise InvalidWorkload("the workload is empty: there is nothing to simulate")
    for number, task in enumerate(tasks):
        if not 0 <= task.arrival < float("inf"):
            raise InvalidWorkload(f"task {number} arrives at {task.arrival}; times are seconds from 0 on")
        if task.deadline is not None and not task.deadline > 0:
            raise InvalidWorkload(
                f"task {number} has a deadline of {task.deadline:g} s, passed when it arrives; give seconds above 0"
            )
        if not task.weight > 0:
            raise InvalidWorkload(f"the weight of task {number} is {task.weight:g}; a weight is above 0")
        if not task.calls:
            raise InvalidWorkload(f"task {number} makes no call")
        for place, call in enumerate(task.calls):
            _check_call(f"call {place} of task {number}", place, call)


def _check_call(what: str, place: int, call: WorkloadCall) -> None:
    if call.tokens < 1:
        raise InvalidWorkload(f"{what} makes {call.tokens} tokens; a call makes at least one")
    if call.prompt < 0 or call.limit < 0 or not 0 <= call.wait < float("inf"):
        raise InvalidWorkload(f"{what} has a negative or infinite prompt, limit or wait")
    if call.limit and call.limit < call.tokens:
        raise InvalidWorkload(f"{what} makes {call.tokens} tokens, more than its limit of {call.limit}")
    if any(not 0 <= before < place for before in call.after):
        raise InvalidWorkload(f"{what} is after {call.after}; name places of earlier calls of its task")
