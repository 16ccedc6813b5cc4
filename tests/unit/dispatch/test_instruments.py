"""Instruments see steps, states and system calls, and disturb nothing."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import UnknownProcess
from ipc.syscalls import Kill, Resume, Sleep, Suspend, Wait
from llmosd.context import Context
from tests.support.system import System


async def napper(ctx: Context) -> int:
    await ctx.sleep(1)
    return 7


class Steps:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def before_step(self, thread: Any) -> None:
        self.seen.append(("before", thread.process.pid, thread.state))

    def after_step(self, thread: Any, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append(("after", thread.process.pid, thread.state))


class States:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def state_changed(self, process: Any, state: str) -> None:
        self.seen.append(state)


class Calls:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def call_entered(self, process: Any, call: Any) -> None:
        self.seen.append(type(call))

    def call_done(self, process: Any, call: Any, error: Any) -> None:
        self.seen.append((type(call), type(error)))


async def test_steps_come_in_pairs_around_each_run_of_a_thread(system: System) -> None:
    steps = Steps()
    system.kernel.instruments.add(steps)
    process = system.spawn(napper)
    await system.turns()
    system.kernel.instruments.remove(steps)
    assert steps.seen == [("before", process.pid, "ready"), ("after", process.pid, "blocked")]
    assert await system.result(process) == 7
    assert len(steps.seen) == 2


async def test_states_of_a_process(system: System) -> None:
    states = States()
    system.kernel.instruments.add(states)
    process = system.spawn(napper)
    await system.call(Suspend(process.pid))
    await system.call(Resume(process.pid))
    await system.call(Kill(process.pid))
    assert states.seen == ["new", "suspended", "ready", "zombie"]


async def test_calls_of_agents_and_clients_with_how_they_went(system: System) -> None:
    calls = Calls()
    system.kernel.instruments.add(calls)
    await system.run(napper)
    with pytest.raises(UnknownProcess):
        await system.call(Wait(999))
    assert calls.seen == [
        Wait,
        Sleep,
        (Sleep, type(None)),
        (Wait, type(None)),
        Wait,
        (Wait, UnknownProcess),
    ]
    system.kernel.instruments.remove(calls)
    calls.seen.clear()
    await system.run("napper")
    assert calls.seen == []


async def test_an_instrument_that_raises_is_removed_and_fails_nobody(system: System) -> None:
    class Broken(Steps):
        def before_step(self, thread: Any) -> None:
            raise ValueError("broken")

    good, broken = Steps(), Broken()
    system.kernel.instruments.add(broken)
    system.kernel.instruments.add(good)
    assert await system.run(napper) == 7
    assert broken.seen == []
    assert [what for what, *_ in good.seen][:2] == ["before", "after"]


async def test_one_without_any_hook_is_a_mistake(system: System) -> None:
    with pytest.raises(ValueError, match="before_step"):
        system.kernel.instruments.add(object())
