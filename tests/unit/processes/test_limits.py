"""Limits of processes and owners: going over one is named, counted, and ends the call or the process."""

from __future__ import annotations

import asyncio
import contextlib
from time import process_time
from typing import Any

import pytest

from ipc.errors import LimitExceeded, MailboxFull
from ipc.syscalls import GetStats, Limits, MemorySet, Send, Spawn
from kernel.processes.limits import LimitSettings
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System


async def burn(ctx: Context, seconds: float) -> None:
    end = process_time() + seconds
    while process_time() < end:
        await asyncio.sleep(0)
    await ctx.sleep(10)


async def talk(ctx: Context, calls: int = 1) -> int:
    for _ in range(calls):
        await ctx.generate("one two three", max_tokens=4)
    return calls


@pytest.fixture(autouse=True)
def programs(system: System) -> None:
    for function in (forever, burn, talk):
        system.program(function)


async def spawn(
    system: System, program: str, args: dict[str, Any] | None = None, /, parent: Any = None, **options: Any
) -> Any:
    pid = await system.call(Spawn(program, args or {}, **options), parent)
    return system.table.get(pid)


async def counted(system: System) -> dict[str, int]:
    stats = await system.call(GetStats())
    assert sum(stats.limits.values()) == stats.errors.get("LimitExceeded", 0)
    return dict(stats.limits)


# ---- of a process: the call fails


async def test_tokens_end_the_call_and_not_the_process(system: System) -> None:
    async def thrifty(ctx: Context) -> tuple[int, dict[str, Any]]:
        done = 0
        try:
            while True:
                await ctx.generate("one two three", max_tokens=4)
                done += 1
        except LimitExceeded as error:
            return done, error.data

    system.program(thrifty)
    process = await spawn(system, "thrifty", limits=Limits(tokens=20))
    done, data = await system.result(process)
    used = process.status.usage.prompt_tokens + process.status.usage.generated_tokens
    assert (data["limit"], data["maximum"]) == ("process tokens", 20)
    assert done == 2
    assert 20 <= used < 20 + 4 + 3
    assert await counted(system) == {"process tokens": 1}


async def test_a_generation_that_runs_out_of_tokens_ends_at_once_and_frees_its_slot(system: System) -> None:
    process = await spawn(system, "talk", limits=Limits(tokens=5))
    with pytest.raises(LimitExceeded, match=f"process {process.pid} reached its limit of 5 tokens"):
        await system.result(process)
    await asyncio.sleep(5)
    assert await system.run("talk", 1) == 1


async def test_exactly_as_many_tokens_as_allowed_are_enough(system: System) -> None:
    free = await spawn(system, "talk")
    await system.result(free)
    needed = free.status.usage.prompt_tokens + free.status.usage.generated_tokens
    assert await system.result(await spawn(system, "talk", limits=Limits(tokens=needed))) == 1


async def test_children_are_counted_while_they_live(system: System) -> None:
    async def parent(ctx: Context) -> str:
        first = await ctx.spawn("forever")
        await ctx.spawn("forever")
        with pytest.raises(LimitExceeded, match="2 children"):
            await ctx.spawn("forever")
        await ctx.kill(first)
        await ctx.spawn("forever")
        return "done"

    system.program(parent)
    assert await system.result(await spawn(system, "parent", limits=Limits(children=2))) == "done"
    assert await counted(system) == {"process children": 1}


async def test_the_length_of_a_mailbox(system: System) -> None:
    process = await spawn(system, "forever", limits=Limits(mailbox=2))
    for n in range(2):
        await system.call(Send(process.pid, n, wait=False))
    with pytest.raises(MailboxFull, match="2 messages"):
        await system.call(Send(process.pid, 3, wait=False))


async def test_keys_and_bytes_of_private_memory(system: System) -> None:
    process = await spawn(system, "forever", limits=Limits(memory_keys=2, memory_bytes=50))
    await system.call(MemorySet("a", 1), process)
    await system.call(MemorySet("b", 1), process)
    with pytest.raises(LimitExceeded, match="2 memory keys"):
        await system.call(MemorySet("c", 1), process)
    with pytest.raises(LimitExceeded, match="50 memory bytes"):
        await system.call(MemorySet("a", "x" * 60), process)
    await system.call(MemorySet("a", 2), process)
    assert await counted(system) == {"process memory_keys": 1, "process memory_bytes": 1}


# ---- of a process: the process ends


async def test_a_life_that_is_too_long_ends(system: System) -> None:
    process = await spawn(system, "forever", limits=Limits(wall_seconds=5.0))
    begin = system.loop.time()
    status = await system.status(process)
    assert (status.reason, status.error.code) == ("limit", "LimitExceeded")
    assert system.loop.time() - begin == pytest.approx(5)
    assert await counted(system) == {"process wall_seconds": 1}


@pytest.mark.parametrize(("deadline", "reason"), [(3.0, "deadline"), (7.0, "limit")])
async def test_the_earlier_of_deadline_and_limit_counts(system: System, deadline: float, reason: str) -> None:
    process = await spawn(system, "forever", deadline=deadline, limits=Limits(wall_seconds=5.0))
    assert (await system.status(process)).reason == reason


async def test_too_much_processor_time_ends_the_process(system: System) -> None:
    process = await spawn(system, "burn", {"seconds": 0.05}, limits=Limits(cpu_seconds=0.01))
    modest = await spawn(system, "burn", {"seconds": 0.0}, limits=Limits(cpu_seconds=30.0))
    status = await system.status(process)
    assert (status.reason, status.error.data["limit"]) == ("limit", "process cpu_seconds")
    assert (await system.status(modest)).reason == "done"
    assert await counted(system) == {"process cpu_seconds": 1}


async def test_nobody_looks_at_processor_times_while_none_is_limited(system: System) -> None:
    await system.result(await spawn(system, "talk", limits=Limits(cpu_seconds=30.0)))
    await asyncio.sleep(1)
    keeper = system.kernel.memory._limits
    assert (keeper._timer, keeper._watched, keeper._accounts) == (None, {}, {})


# ---- inheritance


async def test_a_child_has_no_more_than_its_parent(system: System) -> None:
    parent = await spawn(system, "forever", limits=Limits(tokens=100, children=5))
    child = await spawn(system, "forever", parent=parent, limits=Limits(tokens=1000, children=2, memory_keys=3))
    assert child.limits == Limits(tokens=100, children=2, memory_keys=3)
    assert (await spawn(system, "forever", parent=parent)).limits == parent.limits


class TestDefaults:
    @pytest.fixture
    def limits(self) -> LimitSettings:
        return LimitSettings(process=Limits(tokens=50, children=1))

    async def test_a_submission_goes_over_the_settings_bound_by_bound(self, system: System) -> None:
        assert (await spawn(system, "forever")).limits == Limits(tokens=50, children=1)
        assert (await spawn(system, "forever", limits=Limits(tokens=500))).limits == Limits(tokens=500, children=1)


# ---- of an owner


class TestOwners:
    @pytest.fixture
    def limits(self) -> LimitSettings:
        few = Limits(tokens=20, children=3, cpu_seconds=0.02, memory_keys=2, mailbox=1)
        return LimitSettings(owner=Limits(children=2), owners={"ann": few, "bob": Limits()})

    async def test_processes_of_an_owner_are_counted_together_wherever_they_hang(self, system: System) -> None:
        first = await spawn(system, "forever", owner="ann")
        await spawn(system, "forever", parent=first)
        await spawn(system, "forever", owner="ann", detach=True)
        with pytest.raises(LimitExceeded, match="owner 'ann' reached its limit of 3 children"):
            await spawn(system, "forever", parent=first)
        for _ in range(5):
            await spawn(system, "forever", owner="bob")
        await system.call(Spawn("forever", owner="eve"))
        await system.call(Spawn("forever", owner="eve"))
        with pytest.raises(LimitExceeded, match="owner 'eve' reached its limit of 2 children"):
            await system.call(Spawn("forever", owner="eve"))
        assert await counted(system) == {"owner children": 2}

    async def test_tokens_of_those_that_have_ended_count_too(self, system: System) -> None:
        used = 0
        error = None
        while error is None:
            process = await spawn(system, "talk", owner="ann")
            status = await system.status(process)
            error = status.error
            used += status.usage.prompt_tokens + status.usage.generated_tokens
        assert error.message == "owner 'ann' reached its limit of 20 tokens"
        assert 20 <= used < 20 + 4 + 3
        assert await system.result(await spawn(system, "talk", owner="bob")) == 1

    async def test_processor_time_ends_all_and_admits_no_more(self, system: System) -> None:
        hog = await spawn(system, "burn", {"seconds": 0.1}, owner="ann")
        idle = await spawn(system, "forever", owner="ann")
        for process in (hog, idle):
            status = await system.status(process)
            assert (status.reason, status.error.data["limit"]) == ("limit", "owner cpu_seconds")
        with pytest.raises(LimitExceeded, match=r"owner 'ann' reached its limit of 0\.02 cpu seconds"):
            await spawn(system, "forever", owner="ann")

    async def test_memory_of_all_and_the_mailbox_of_each(self, system: System) -> None:
        one, other = await spawn(system, "forever", owner="ann"), await spawn(system, "forever", owner="ann")
        await system.call(MemorySet("a", 1), one)
        await system.call(MemorySet("a", 1), other)
        with pytest.raises(LimitExceeded, match="owner 'ann' reached its limit of 2 memory keys"):
            await system.call(MemorySet("b", 1), other)
        for process in (one, other):
            await system.call(Send(process.pid, 1, wait=False))
            with pytest.raises(MailboxFull, match="1 messages"):
                await system.call(Send(process.pid, 1, wait=False))


class TestRememberedUsage:
    """The usage of an owner is remembered after the end of all its processes, but not of all owners."""

    @pytest.fixture
    def limits(self) -> LimitSettings:
        return LimitSettings(owner=Limits(tokens=1000, processes=1))

    async def test_an_owner_that_used_nothing_is_forgotten(self, system: System) -> None:
        for number in range(5):
            process = await spawn(system, "forever", owner=f"owner {number}")
            with pytest.raises(LimitExceeded, match="processes"):
                await spawn(system, "forever", owner=f"owner {number}")
            system.kernel.process_exit.end(process, "killed", "")
        await asyncio.sleep(5)
        assert system.kernel.limits._accounts == {}

    async def test_used_tokens_are_remembered_for_the_last_owners(
        self, system: System, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kernel.processes.limits.REMEMBERED", 3)
        for number in range(6):
            assert await system.result(await spawn(system, "talk", owner=f"owner {number}")) == 1
        assert await system.result(await spawn(system, "talk", owner="owner 3")) == 1
        assert await system.result(await spawn(system, "talk", owner="owner 6")) == 1
        assert list(system.kernel.limits._idle) == ["owner 5", "owner 3", "owner 6"]
        accounts = system.kernel.limits._accounts
        assert list(accounts) == ["owner 3", "owner 5", "owner 6"]
        assert accounts["owner 3"].tokens == 2 * accounts["owner 6"].tokens > 0

    async def test_tokens_that_are_reported_after_the_end_of_the_last_process_count(self, system: System) -> None:
        process = await spawn(system, "forever", owner="owner")
        system.kernel.process_exit.end(process, "killed", "")
        await asyncio.sleep(5)
        limits = system.kernel.limits
        with contextlib.suppress(LimitExceeded):
            limits.tokens_used(process, 1001)
        with pytest.raises(LimitExceeded):
            limits.check_tokens(await spawn(system, "forever", owner="owner"))
