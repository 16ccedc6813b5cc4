"""Why a process waits for a tool, or for the disk below the journal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from ipc.syscalls import Send, Submit
from kernel.durable.pending_restarts import PendingRestarts
from kernel.journal import writer
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.durable_world import World
from tests.support.explaining import pids, why
from tests.support.system import System
from tests.support.tool_bench import Bench, Hanging, use


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.go.set()


async def test_a_call_of_a_tool_says_since_when_it_runs_and_its_timeout(system: System, hanging: Hanging) -> None:
    bench = Bench(system)
    name = bench.add(hanging.function(), concurrency=1, timeout=60.0)
    running = system.spawn(use, name)
    await bench.hung(hanging)
    waiting = [system.spawn("use", name) for _ in range(2)]
    await asyncio.sleep(3)
    explanation = await why(system, running)
    assert (explanation.wait.kind, explanation.wait.timeout) == ("tool", 57.0)
    assert (
        "has been waiting 3.0 s for the result of tool hang. The wait ends when the function returns, or in 57 s, when "
        "it times out." in explanation.text
    )
    explanation = await why(system, waiting[1])
    assert (pids(explanation.wait.holders), pids(explanation.wait.ahead)) == ([running.pid], [waiting[0].pid])
    assert "for a place of tool hang. It is 2nd of 2 in line." in explanation.text
    assert f"The only place of the tool is taken by process {running.pid} (use). The wait ends" in explanation.text
    assert "The wait ends when 2 calls of the tool have returned" in explanation.text
    hanging.go.set()
    for process in (running, *waiting):
        await system.status(process)
    await bench.idle(name)
    assert bench.tools._limits[name].callers == {}


async def test_a_place_may_be_taken_by_a_function_whose_caller_gave_up(system: System, hanging: Hanging) -> None:
    bench = Bench(system)
    name = bench.add(hanging.function(), concurrency=1, timeout=60.0)
    impatient = system.spawn(use, name)
    await bench.hung(hanging)
    await asyncio.sleep(61)
    assert impatient.ended
    waiting = system.spawn("use", name)
    await asyncio.sleep(1)
    text = (await why(system, waiting)).text
    assert "The only place of the tool is taken by a function whose caller gave up. The wait ends when" in text
    hanging.go.set()
    await system.status(waiting)
    await bench.idle(name)


async def test_a_tool_that_failed_is_tried_again_after_a_pause(system: System) -> None:
    def fails() -> None:
        raise ValueError("not now")

    bench = Bench(system)
    process = system.spawn(use, bench.add(fails, retries=5))
    await system.until(lambda: process.state()[1] == "tool fails" and bool(next(iter(process.threads)).timers))
    explanation = await why(system, process)
    assert "pausing" in explanation.text
    assert "before another attempt with tool fails, which failed. The wait ends in" in explanation.text
    assert "when it tries again." in explanation.text


@pytest.mark.real_time
async def test_a_durable_agent_waits_for_its_commit_and_names_the_disk_that_refuses_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    apply = Store.apply

    def refuse(store: Store, changes: Any) -> None:
        if full.is_set():
            raise apsw.FullError("no room")
        apply(store, changes)

    monkeypatch.setattr(Store, "apply", refuse)
    monkeypatch.setattr(writer, "RETRY", 0.005)

    async def worker(ctx: Context) -> None:
        await ctx.receive()
        await ctx.shared("region").set(1)

    program = world.agent(worker)
    async with world.life() as life:
        task = await life.submit(program)
        (process,) = (one for one in life.system.table.alive.values() if one.program == "worker")
        await life.until(lambda: process.state()[1] == "message")
        full.set()
        sent = life.system.thread(life.system.kernel.gate.enter(life.system.client, Send(process.pid, 1)))
        await life.until(lambda: process.state()[1] == "journal")
        await life.until(lambda: life.system.kernel.durability.commits.refused)
        explanation = await why(life.system, process)
        assert explanation.wait.kind == "journal"
        assert "for the journal to write what it did." in explanation.text
        assert "(no room), and the journal tries again." in explanation.text
        full.clear()
        await sent
        await life.result(task)


@pytest.fixture
async def journaled(tmp_path: Any) -> Any:
    system = boot(tmp_path, models={}, journal=Journal(tmp_path, JournalSettings()))
    yield system
    await system.kernel.drain(0)
    await system.kernel.close()


@pytest.mark.real_time
async def test_a_process_whose_task_has_ended_waits_for_the_disk_to_write_its_result(
    journaled: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def quick(ctx: Context) -> int:
        return 3

    full = threading.Event()
    full.set()
    finish = Store.finish

    def refuse(store: Store, ends: Any) -> None:
        if ends and full.is_set():
            raise apsw.FullError("no room")
        finish(store, ends)

    monkeypatch.setattr(Store, "finish", refuse)
    monkeypatch.setattr(writer, "RETRY", 0.005)
    submitted = await journaled.submit(Submit(journaled.program(quick), {}))
    await journaled.until(lambda: journaled.tasks._running._delayed == 1)
    explanation = await why(journaled, submitted.pid)
    assert explanation.wait.kind == "journal"
    assert (
        f"for the journal to write its result. It has ended (done), and the end of its task {submitted.id} is not on "
        "disk yet; the disk refused the first attempt to write it, and the journal tries again." in explanation.text
    )
    full.clear()
    await journaled.until(lambda: not journaled.tasks.unwritten)
    assert (await why(journaled, submitted.pid)).wait.kind == "ended"


async def test_a_call_to_a_process_that_is_yet_to_restart_names_it(system: System) -> None:
    async def sender(ctx: Context) -> None:
        await ctx.send(77, "hello")

    pending = PendingRestarts(system.kernel.gate)
    pending.expect([(77, 1)], {})
    process = system.spawn(sender)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert explanation.wait.kind == "recovery"
    assert "for durable process 77, which ran in a previous run of the daemon." in explanation.text
    assert "The wait ends when process 77 has restarted, or its task has ended." in explanation.text
    pending.remove(77)
    assert (await system.status(process)).reason == "failed"
