"""Nothing grows with what has come and gone: once all agents have ended, each table is as long as it was before.

`tests.support.containers` counts the entries of every container that the kernel reaches, so that no table is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ipc.abi import AgentMark
from ipc.errors import LlmosError
from ipc.messages import Emitted
from ipc.syscalls import Limits, Regions, SharedDelete, Submit, Wait
from kernel.core.event_log import EventLog
from kernel.core.mailbox import Mailbox
from kernel.core.process import Process, Thread
from kernel.core.stream import MAX_EVENTS, Stream
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.models.sequence import Sequence
from kernel.models.spec import ModelSpec
from kernel.policy.queue_entry import QueueEntry
from kernel.processes.limits import LimitSettings
from kernel.programs.program import Program
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.containers import count, grown
from tests.support.simulated import FAST
from tests.support.system import System
from tests.support.tool_bench import Bench


async def child(ctx: Context, name: str) -> Any:
    """Registers a name, waits for a call, replies, and ends."""
    await ctx.register(name)
    await ctx.subscribe(f"{name}.*")
    await ctx.memory.set(name, name)
    message = await ctx.receive()
    await ctx.reply(message, name)
    return name


async def waiter(ctx: Context, name: str) -> None:
    """Waits for everything that can be waited for, until it is killed."""
    waits = [
        ctx.receive(type=name),
        ctx.shared(name).watch(0),
        ctx.lock(name).acquire(),
        ctx.semaphore(f"semaphore {name}", 1).acquire(),
        ctx.semaphore(f"semaphore {name}", 1).acquire(),
        ctx.event(f"event {name}").wait(),
        ctx.barrier(f"barrier {name}", 2).wait(),
        ctx.generate(name, max_tokens=500),
        ctx.score(name, ["a"]),
        ctx.call(name.removesuffix(" waiter"), name),
        ctx.sleep(10**5),
    ]
    async with asyncio.TaskGroup() as group:
        for wait in waits:
            group.create_task(wait)


async def failing(ctx: Context, name: str) -> None:
    await ctx.register(name)
    raise ValueError(name)


async def agent(ctx: Context, name: str, names: list[str]) -> None:
    """Uses each subject of the kernel under names that no other agent uses."""
    await ctx.register(name)
    called, waiting, failed = [
        await ctx.spawn(program, {"name": f"{name} {program.split()[0]}"}, owner=f"owner {name} {program}")
        for program in names
    ]
    await ctx.monitor(failed)
    await ctx.demonitor(await ctx.monitor(waiting))
    await ctx.link(called)
    await ctx.unlink(called)
    await ctx.sleep(5)
    await ctx.send(waiting, name, type="other", lifetime=1)
    await ctx.send(waiting, name, correlation=7)
    await ctx.publish(f"{name}.topic", 1)
    await ctx.call(called, name)
    with contextlib.suppress(LlmosError):
        await ctx.wait(called)
    with contextlib.suppress(LlmosError):
        await ctx.send(called, "a dead letter")
    async with ctx.lock(name), ctx.semaphore(f"other {name}", 2):
        await ctx.event(f"event {name}").set()
        await ctx.event(f"event {name}").clear()
    condition = ctx.condition(f"condition {name}")
    async with condition:
        with contextlib.suppress(TimeoutError, LlmosError):
            await condition.wait(timeout=1)
    region = ctx.shared(name)
    await region.set(name)
    with contextlib.suppress(LlmosError):
        await region.watch(await region.set(2), timeout=1)
    await region.delete()
    await ctx.shared(f"ephemeral {name}", ephemeral=True).set(1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            await ctx.generate(name, max_tokens=500)
    await ctx.generate(name, max_tokens=2)
    await ctx.embed([name])
    await ctx.tool("repeat", {"text": name})
    await ctx.emit(name)
    ctx.log(name)
    print(name)
    asyncio.get_running_loop().call_later(10**3, print, name)
    await ctx.kill(waiting)
    await ctx.sleep(5)


async def durable(ctx: Context, name: str) -> str:
    await ctx.checkpoint(name)
    await ctx.subscribe(f"{name}.*")
    await ctx.shared(f"durable {name}", durable=True).set(1)
    await ctx.sleep(3)
    await ctx.shared(f"durable {name}").delete()
    return name


async def nothing(ctx: Context) -> None:
    """Ends."""


def repeat(text: str) -> str:
    return text


LIVING = (Process, Thread, Sequence, Stream, EventLog, Mailbox, QueueEntry)
REMEMBERED = 8  # ended processes
PROGRAMS = (child, waiter, failing)


async def come_and_go(system: System, n: int, generation: str) -> None:
    """`n` of everything, under new names, to the end."""
    kernel = system.kernel
    installed = system.programs.installed.programs
    before = list(installed)
    for i in range(n):
        name = f"{generation} {i}"
        client = kernel.lifecycle.open_client(f"client {name}")
        names = [system.program(program, f"{program.__name__} {name}") for program in PROGRAMS]
        recorder = system.recorder(credit=0 if i % 2 else 10**6)
        if i % 2:
            for number in range(MAX_EVENTS - 1):
                recorder.stream.push(Emitted(0, number))
        program = system.program(agent, f"agent {name}")
        process = system.spawn(program, name, names, stream=recorder.stream, parent=client, detach=True)
        quick = system.install(Program(durable, AgentMark(f"durable {name}", "", durable=True), "test"))
        task = system.recorder()
        submission = kernel.gate.enter(client, Submit(quick, {"name": name}, detach=True), task.stream)
        await kernel.threads.start_thread(client, submission)
        if i % 2:  # its reader is behind
            await asyncio.sleep(1 + i % 13)
            kernel.process_exit.end(process, "killed", "")
        status = await system.call(Wait(process.pid))
        assert status.error is None or i % 2, status
        recorder.stream.grant(10**6)
        await system.until(lambda task=task: task.ended)
        kernel.process_exit.end(client, "killed", "it disconnected")
        for region in await system.call(Regions()):
            await system.call(SharedDelete(region.name))
    await asyncio.sleep(10)
    for process in tuple(system.table.alive.values()):
        if process is not system.client:
            kernel.process_exit.end(process, "killed", "")
    await asyncio.sleep(2000)
    installed[:] = before
    for name in [name for name in system.programs.by_name if generation in name]:
        del system.programs.by_name[name]


async def tick() -> None:
    """Lets time pass while the journal's thread commits, which the loop cannot see."""
    while True:
        await asyncio.sleep(10)


async def held(system: System) -> Counter[str]:
    """Count all that the kernel holds when nothing runs. Processes without a trace replace the remembered ones."""
    for _ in range(REMEMBERED):
        await system.run("nothing")
    await asyncio.sleep(1000)
    gc.collect()
    found = count(system.kernel)
    found.update(type(each).__name__ for each in gc.get_objects() if issubclass(type(each), LIVING))
    fire = system.kernel.dispatcher.timers._fire  # one timer for all threads, which may be set though none waits
    timers = [timer for timer in system.loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    found["timers"] = sum(timer._callback != fire for timer in timers)
    return found


async def test_every_table_is_as_long_after_many_as_after_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.core.process_table.REMEMBERED", REMEMBERED)
    monkeypatch.setattr("kernel.models.think_time.PROGRAMS", 4)
    models = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=FAST)}
    limits = LimitSettings(owner=Limits(processes=1000))
    journal = Journal(tmp_path, JournalSettings(sync="normal"))
    system = boot(tmp_path, models=models, limits=limits, journal=journal)
    await system.until(lambda: system.kernel.opened)
    Bench(system).add(repeat)
    system.program(nothing)
    clock = asyncio.Task(tick())
    await come_and_go(system, 12, "first")
    few = await held(system)
    await come_and_go(system, 24, "second")
    many = await held(system)
    assert grown(few, many) == {}
    await system.kernel.drain(0)
    await system.kernel.close()
    clock.cancel()
