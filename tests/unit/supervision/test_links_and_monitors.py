"""Links share an end and monitors report it. Neither is lost, doubled or left behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ipc.codec import encode
from ipc.errors import InvalidCall, Killed, LimitExceeded, LlmosError, NameTaken, NotFound, UnknownProcess
from ipc.frames import MAX_FRAME
from ipc.syscalls import Crashes, Demonitor, Kill, Link, Monitor, Names, PeekMailbox, Send, Spawn
from kernel.core.mailbox import CAPACITY
from kernel.core.process_table import REMEMBERED
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System


async def crash(ctx: Context) -> None:
    raise ValueError("broken")


async def well(ctx: Context) -> int:
    return 1


@pytest.fixture(autouse=True)
def programs(system: System) -> None:
    for function in (forever, crash, well):
        system.program(function)


def tables(system: System) -> list[Any]:
    """The tables of the link subsystem."""
    links = system.kernel.links
    return [links._links, links._monitors, links._refs_of_holder, links._refs_of_target]


# ---- links


@pytest.mark.parametrize("first_to_go", [0, 1])
async def test_linked_processes_end_together_whichever_fails(system: System, first_to_go: int) -> None:
    one, other = system.spawn("forever"), system.spawn("forever")
    await system.call(Link(other.pid), one)
    gone, left = (one, other) if first_to_go == 0 else (other, one)
    await system.call(Kill(gone.pid))
    status = await system.status(left)
    assert status.reason == "linked"
    assert f"process {gone.pid} (forever), to which it was linked, ended (killed" in status.error.message
    assert tables(system) == [{}, {}, {}, {}]


async def test_an_end_that_went_well_is_not_shared(system: System) -> None:
    one = system.spawn("forever")
    pid = await system.call(Spawn("well", link=True), one)
    await system.status(pid)
    await system.turns()
    assert not one.dying
    assert tables(system)[0] == {}


async def test_a_child_linked_at_birth_takes_its_parent_along_even_if_it_fails_at_once(system: System) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.spawn("crash", link=True)
        await ctx.sleep(10)

    status = await system.status(system.spawn(parent))
    assert (status.reason, "broken" in status.error.message) == ("linked", True)


async def test_an_unlinked_one_goes_on(system: System) -> None:
    async def parent(ctx: Context) -> str:
        pid = await ctx.spawn("forever", link=True)
        await ctx.unlink(pid)
        await ctx.kill(pid)
        return "alive"

    assert await system.run(parent) == "alive"


async def test_a_long_line_of_links_ends_as_a_whole(system: System) -> None:
    line = [system.spawn("forever") for _ in range(2000)]
    for one, other in itertools.pairwise(line):
        await system.call(Link(other.pid), one)
    await system.call(Kill(line[0].pid))
    assert (await system.status(line[-1])).reason == "linked"
    assert tables(system)[0] == {}


async def test_links_that_cannot_be_are_named(system: System) -> None:
    one = system.spawn("forever")
    with pytest.raises(InvalidCall, match="to itself"):
        await system.call(Link(one.pid), one)
    with pytest.raises(InvalidCall, match="client"):
        await system.call(Link(one.pid))
    with pytest.raises(UnknownProcess, match="never existed"):
        await system.call(Link(999), one)
    ended = system.spawn("well")
    await system.status(ended)
    with pytest.raises(UnknownProcess, match="has ended"):
        await system.call(Link(ended.pid), one)


# ---- monitors


async def test_the_monitors_of_a_process_and_their_unread_messages_are_bounded(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.supervision.links.MOST_MONITORS", 3)
    process, ended = system.spawn(forever), system.spawn(well)
    await system.status(ended)
    ref = await system.call(Monitor(process.pid))
    for _ in range(2):
        await system.call(Monitor(ended.pid))
    with pytest.raises(LimitExceeded, match="3 monitors"):
        await system.call(Monitor(ended.pid))
    await system.call(Demonitor(ref))
    await system.call(Monitor(ended.pid))


async def test_a_monitor_is_told_once_by_a_message_above_all_others(system: System) -> None:
    async def watcher(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("crash")
        ref = await ctx.monitor(pid)
        for n in range(CAPACITY):
            await ctx.send(ctx.pid, n, priority=20)
        await ctx.sleep(1)
        first = await ctx.receive()
        second = await ctx.receive()
        body = first.body
        assert (first.type, first.sender, first.correlation) == ("down", pid, ref)
        assert (body.ref, body.pid, body.program, body.reason) == (ref, pid, "crash", "failed")
        return [body.error.code, "broken" in body.error.message, second.body]

    assert await system.run(watcher) == ["AgentFailed", True, 0]
    assert tables(system) == [{}, {}, {}, {}]


async def test_a_monitor_of_one_that_ended_is_told_at_once_how(system: System) -> None:
    ended = system.spawn("well")
    await system.status(ended)
    watcher = system.spawn("forever")
    ref = await system.call(Monitor(ended.pid), watcher)
    (heading,) = await system.call(PeekMailbox(watcher.pid))
    assert (heading.type, heading.correlation) == ("down", ref)
    for _ in range(REMEMBERED):
        await system.run("well")
    await system.call(Monitor(ended.pid), watcher)
    reasons = [message.body for message in watcher.mailbox.peek()]
    assert len(reasons) == 2
    with pytest.raises(UnknownProcess, match="never existed"):
        await system.call(Monitor(10**6), watcher)


async def test_after_demonitor_no_message_of_it_comes(system: System) -> None:
    watcher, one, other = (system.spawn("forever") for _ in range(3))
    refs = [await system.call(Monitor(target.pid), watcher) for target in (one, other, other)]
    await system.call(Demonitor(refs[0]), watcher)
    await system.call(Kill(one.pid))
    await system.call(Kill(other.pid))
    await system.call(Demonitor(refs[2]), watcher)
    assert [row.correlation for row in await system.call(PeekMailbox(watcher.pid))] == [refs[1]]
    await system.call(Demonitor(999), watcher)
    assert tables(system) == [{}, {}, {}, {}]


async def test_only_its_holder_can_take_a_monitor_back(system: System) -> None:
    watcher, target, thief = (system.spawn("forever") for _ in range(3))
    ref = await system.call(Monitor(target.pid), watcher)
    await system.call(Demonitor(ref), thief)
    await system.call(Kill(target.pid))
    assert len(await system.call(PeekMailbox(watcher.pid))) == 1


async def test_a_monitor_that_ended_is_told_nothing_and_leaves_nothing(system: System) -> None:
    watcher, target = system.spawn("forever"), system.spawn("forever")
    await system.call(Monitor(target.pid), watcher)
    await system.call(Kill(watcher.pid))
    assert tables(system) == [{}, {}, {}, {}]
    await system.call(Kill(target.pid))


async def test_a_client_can_monitor(system: System) -> None:
    target = system.spawn("forever")
    ref = await system.call(Monitor(target.pid))
    await system.call(Kill(target.pid))
    assert [(row.type, row.correlation) for row in await system.call(PeekMailbox(system.client.pid))] == [("down", ref)]


# ---- names at birth


async def test_a_name_given_at_spawn_is_there_before_the_first_step(system: System) -> None:
    pid = await system.call(Spawn("forever", name="one"))
    assert [(row.name, row.pid) for row in await system.call(Names())] == [("one", pid)]
    with pytest.raises(NameTaken):
        await system.call(Spawn("forever", name="one"))
    await system.turns()
    assert [process.pid for process in system.table.alive.values() if not process.is_client] == [pid]


# ---- crash reports


async def test_a_crash_report_has_traceback_last_messages_usage_and_log(system: System) -> None:
    async def fragile(ctx: Context) -> None:
        ctx.log("at work")
        for _ in range(7):
            message = await ctx.receive()
        raise ValueError(f"cannot digest {message.body}")

    process = system.spawn(fragile)
    for n in range(9):
        await system.call(Send(process.pid, n, str(n)))
    await system.status(process)
    (report,) = await system.call(Crashes(process.pid))
    assert (report.pid, report.parent, report.program, report.reason) == (
        process.pid,
        system.client.pid,
        "fragile",
        "failed",
    )
    assert "ValueError: cannot digest 6" in report.error.data["traceback"]
    assert [message.type for message in report.messages] == ["2", "3", "4", "5", "6"]
    assert {message.sender for message in report.messages} == {system.client.pid}
    assert (report.unread, report.usage.messages_received) == (2, 7)
    assert [line.event for line in report.log] == ["at work"]


async def test_large_errors_and_log_lines_are_cut_in_reports_and_all_reports_fit_into_an_answer(system: System) -> None:
    async def large(ctx: Context) -> None:
        for _ in range(10):
            ctx.log("x" * 900_000, fact="y" * 100_000)
        raise LlmosError("too much", fact="z" * 900_000, code=7)

    for _ in range(3):
        await system.status(system.spawn(large))
    reports = await system.call(Crashes())
    assert len(reports) == 3
    assert len(encode(reports)) < MAX_FRAME
    for report in reports:
        assert report.log[0].event == "x" * 2_000 + "… (898000 more characters)"
        assert report.log[0].fields == {"omitted": "100011 bytes of fields"}
        assert sorted(report.error.data) == ["crash", "place", "traceback"]


async def test_ends_that_someone_wanted_are_no_crashes(system: System) -> None:
    await system.run("well")
    victim = system.spawn("forever")
    await system.call(Kill(victim.pid))
    assert await system.call(Crashes()) == []
    with pytest.raises(Killed):
        await system.result(victim)


async def test_crashes_of_a_process_without_a_report_is_an_error_that_says_why(system: System) -> None:
    well = system.spawn("well")
    await system.result(well)
    victim, living = system.spawn("forever"), system.spawn("forever")
    await system.call(Kill(victim.pid))
    for pid, why in ((well.pid, "it ended well"), (victim.pid, "it was killed"), (living.pid, "it has not ended")):
        with pytest.raises(NotFound, match=why):
            await system.call(Crashes(pid))
    with pytest.raises(UnknownProcess, match="999999 never existed"):
        await system.call(Crashes(999999))


async def test_an_error_names_the_crash_report_only_if_there_is_one(system: System) -> None:
    async def late(ctx: Context) -> None:
        await ctx.sleep(3600)

    victim = system.spawn("forever")
    await system.call(Kill(victim.pid))
    expired = system.spawn(late, deadline=1.0)
    failed = system.spawn("crash")
    facts = {process: (await system.status(process)).error for process in (victim, expired, failed)}
    reports = {report.pid for report in await system.call(Crashes())}
    for process, error in facts.items():
        assert error is not None
        assert error.data.get("crash") == (process.pid if process.pid in reports else None)
    assert reports == {expired.pid, failed.pid}
