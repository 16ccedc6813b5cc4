"""Processes that no other process keeps waiting: asleep, ready, suspended, outside the kernel, ending or ended."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from ipc.errors import UnknownProcess
from ipc.syscalls import Kill, Limits, Resume, Suspend
from kernel.processes.limits import LimitSettings
from llmosd.context import Context
from tests.support.agents import forever, idle
from tests.support.explaining import why
from tests.support.system import System


async def test_a_sleeper_says_when_it_wakes_and_where_its_code_is(system: System) -> None:
    async def sleeper(ctx: Context) -> None:
        await ctx.sleep(200)

    process = system.spawn(sleeper)
    await asyncio.sleep(10)
    explanation = await why(system, process)
    assert (explanation.wait.kind, explanation.wait.timeout) == ("time", pytest.approx(190.0))
    assert explanation.text.startswith(
        f"Process {process.pid} (sleeper) has been sleeping for 10 s. The wait ends in 3 min 10 s, when the time to "
        "sleep is over. Its code is at line "
    )
    assert f"of {Path(__file__).name} (sleeper)." in explanation.text


async def test_a_new_process_is_about_to_run(system: System) -> None:
    explanation = await why(system, system.spawn(forever))
    assert (explanation.wait.kind, explanation.wait.seconds) == ("ready", None)
    assert "is ready, and runs on one of the next turns of the loop." in explanation.text


async def test_a_process_that_asks_about_itself_runs(system: System) -> None:
    seen = []

    async def curious(ctx: Context) -> None:
        seen.append(await why(system, ctx.pid))

    await system.run(curious)
    (explanation,) = seen
    assert (explanation.state, explanation.wait.kind) == ("running", "running")


async def test_a_wait_outside_the_kernel_names_the_line_that_waits(system: System) -> None:
    process = system.spawn(idle)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert (explanation.state, explanation.wait.kind) == ("blocked", "outside")
    assert "for code outside the kernel. The wait ends when the future that it awaits is done." in explanation.text
    assert "of agents.py (idle)." in explanation.text


async def test_of_several_threads_the_most_active_is_explained_and_the_others_are_named(system: System) -> None:
    async def group(ctx: Context) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ctx.sleep(20))
            tasks.create_task(ctx.generate("x", max_tokens=50))

    process = system.spawn(group)
    await asyncio.sleep(3)
    explanation = await why(system, process)
    assert (explanation.thread, explanation.threads, explanation.wait.kind) == ("0-2", 3, "generating")
    others = "threads 0 (blocked: outside) and 0-1 (blocked: time)"
    assert f"This is about thread 0-2; the process also has {others}." in explanation.text


async def test_a_suspended_process_says_by_whom_since_when_and_how_it_goes_on(system: System) -> None:
    process = system.spawn(forever)
    await asyncio.sleep(1)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    explanation = await why(system, process)
    assert (explanation.state, explanation.wait.kind, explanation.wait.seconds) == ("suspended", "suspended", 2.0)
    assert explanation.text == (
        f"Process {process.pid} (forever) has been suspended for 2.0 s by process 1 (client). The wait ends when a "
        f"process resumes it, as `llmos resume {process.pid}` does."
    )
    await system.call(Resume(process.pid))
    assert (await why(system, process)).wait.kind == "time"
    assert process.suspensions == {}


async def test_a_suspended_thread_is_explained_as_that_thread(system: System) -> None:
    process = system.spawn(forever)
    await asyncio.sleep(1)
    await system.call(Suspend(process.pid, "0"))
    explanation = await why(system, process)
    assert (explanation.state, explanation.thread, explanation.wait.kind) == ("suspended", "0", "suspended")
    await system.call(Resume(process.pid, "0"))


async def test_an_ending_process_counts_what_is_left_of_it(system: System) -> None:
    async def slow_to_end(ctx: Context) -> None:
        try:
            await ctx.sleep(100)
        finally:
            await asyncio.sleep(1.5)

    process = system.spawn(slow_to_end)
    await asyncio.sleep(1)
    killed = system.thread(system.kernel.gate.enter(system.client, Kill(process.pid)))
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert explanation.wait.kind == "ending"
    assert explanation.text.startswith(
        f"Process {process.pid} (slow_to_end) is ending (killed). Its 1 thread has not ended yet. The wait ends when "
        "its `finally` blocks are done; after 2 s the kernel abandons the threads."
    )
    await killed


async def test_a_process_that_ended_says_how_and_when_and_names_the_command_that_shows_more(system: System) -> None:
    async def fails(ctx: Context) -> None:
        raise ValueError("no such thing")

    async def is_done(ctx: Context) -> int:
        return 3

    failed, done, killed = system.spawn(fails), system.spawn(is_done), system.spawn(forever)
    await asyncio.sleep(1)
    await system.call(Kill(killed.pid))
    await asyncio.sleep(4)
    failure, *texts = [(await why(system, process)).text for process in (failed, done, killed)]
    assert re.fullmatch(
        rf"Process {failed.pid} \(fails\) ended 5\.0 s ago \(failed\): AgentFailed: test_conditions\.py:\d+: fails: "
        rf"ValueError: no such thing\. `llmos crashes {failed.pid}` shows more\.",
        failure,
    )
    assert texts == [
        f"Process {done.pid} (is_done) ended 5.0 s ago (done). `llmos wait {done.pid}` shows its result.",
        f"Process {killed.pid} (forever) ended 4.0 s ago (killed): killed by process 1 (client). "
        f"`llmos logs {killed.pid}` shows its log.",
    ]


async def test_an_unknown_process_is_an_error(system: System) -> None:
    with pytest.raises(UnknownProcess, match="process 999 never existed"):
        await why(system, 999)


@pytest.mark.parametrize(
    "limits", [LimitSettings(process=Limits(tokens=25, wall_seconds=100.0), owner=Limits(children=1))]
)
async def test_limits_that_are_nearly_used_and_the_end_that_they_bring_are_mentioned(system: System) -> None:
    async def spends(ctx: Context) -> None:
        await ctx.generate("one two three", max_tokens=20)
        await ctx.sleep(1000)

    process = system.spawn(spends)
    await asyncio.sleep(30)
    notes = (await why(system, process)).notes
    assert notes[1:] == [
        "The kernel ends the process in 1 min 10 s, at its limit of 100 wall seconds",
        f"Process {process.pid} has used 23 of 25 tokens, its limit",
        "Owner test has used 1 of 1 children, its limit",
    ]
    await asyncio.sleep(80)
    explanation = await why(system, process)
    assert "(limit): LimitExceeded: process" in explanation.text
    assert f"`llmos crashes {process.pid}` shows more." in explanation.text


async def test_a_deadline_ends_the_process_whatever_it_waits_for(system: System) -> None:
    process = system.spawn(forever, deadline=100)
    await asyncio.sleep(2)
    assert "The kernel ends the process in 1 min 38 s, at its deadline." in (await why(system, process)).text
