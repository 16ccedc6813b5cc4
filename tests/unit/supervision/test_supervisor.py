"""Supervisors: which children they restart, in which order, after which pause, and when they give up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ipc.errors import InvalidCall, NameTaken, TooManyRestarts, UnknownProgram
from ipc.syscalls import Child, Kill, Logs, Names, Sleep, Supervise
from kernel.core import process_table
from kernel.supervision.restarts import RestartIntensity
from llmosd.context import Context
from tests.support.system import System

STRATEGIES = ["one_for_one", "one_for_all", "rest_for_one"]


@pytest.fixture
def story(system: System) -> list[str]:
    """The starts and ends of the children: "a1" for the first start of a, "a1-" for its end."""
    events: list[str] = []
    starts: dict[str, int] = {}

    async def child(ctx: Context, name: str, ends: list[Any] | None = None) -> str:
        starts[name] = starts.get(name, 0) + 1
        me = f"{name}{starts[name]}"
        events.append(me)
        try:
            how = ends.pop(0) if ends else None
            if how is None:
                await ctx.sleep(1e6)
            seconds, error = how
            await ctx.sleep(seconds)
            if error:
                raise ValueError(error)
            return me
        finally:
            events.append(me + "-")

    system.program(child)
    return events


@pytest.fixture
def supervise(system: System, story: list[str]) -> Callable[..., Any]:
    """Spawns a supervisor of children, each given by its name, its restart kind, and the ends of its starts in turn."""
    system.restart_without_jitter()
    ends: dict[str, list[Any]] = {}

    async def one(ctx: Context, name: str) -> str:
        return await system.programs.by_name.get("child").function(ctx, name, ends[name])

    system.program(one)

    def start(*children: Any, **options: Any) -> Any:
        specs = []
        for name, restart, *how in children:
            ends[name] = list(how)
            specs.append(Child("one", {"name": name}, name=name, restart=restart))

        async def supervisor(ctx: Context) -> list[str]:
            options.setdefault("backoff", 1.0)
            options.setdefault("within", 1000.0)
            return [end.value for end in await ctx.supervise(specs, **options)]

        return system.spawn(supervisor)

    return start


async def test_children_that_end_well_are_answered_in_order(system: System, supervise: Any, story: list[str]) -> None:
    process = supervise(("a", "transient", (2, "")), ("b", "temporary", (1, "")))
    assert await system.result(process) == ["a1", "b1"]
    assert story == ["a1", "b1", "b1-", "a1-"]


EXPECTED = {
    "one_for_one": ["a1", "b1", "c1", "b1-", "b2", "b2-", "c1-", "a1-"],
    "one_for_all": ["a1", "b1", "c1", "b1-", "c1-", "a1-", "a2", "b2", "c2", "b2-", "c2-", "a2-"],
    "rest_for_one": ["a1", "b1", "c1", "b1-", "c1-", "b2", "c2", "b2-", "c2-", "a1-"],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_who_is_started_again_and_in_which_order(
    system: System, supervise: Any, story: list[str], strategy: str
) -> None:
    process = supervise(
        ("a", "permanent"),
        ("b", "permanent", (1, "broken"), (5, "broken")),
        ("c", "permanent"),
        strategy=strategy,
        max_restarts=1,
    )
    with pytest.raises(TooManyRestarts, match="one ended again") as caught:
        await system.result(process)
    assert "broken" in caught.value.data["error"]
    # When it gives up it ends the rest, the last first.
    assert story == EXPECTED[strategy]


@pytest.mark.parametrize(
    ("restart", "error", "starts"),
    [
        ("permanent", "", 2),
        ("permanent", "broken", 2),
        ("transient", "", 1),
        ("transient", "broken", 2),
        ("temporary", "", 1),
        ("temporary", "broken", 1),
    ],
)
async def test_which_ends_lead_to_a_restart(
    system: System, supervise: Any, story: list[str], restart: str, error: str, starts: int
) -> None:
    supervise(("a", restart, (1, error)))
    await system.turns()
    await system.call(Sleep(10))
    assert [line for line in story if not line.endswith("-")] == ["a1", "a2"][:starts]


async def test_a_child_that_was_killed_is_started_again(system: System, supervise: Any, story: list[str]) -> None:
    supervise(("a", "transient"))
    await system.turns()
    (row,) = await system.call(Names())
    await system.call(Kill(row.pid))
    await system.call(Sleep(2))
    assert story == ["a1", "a1-", "a2"]
    (again,) = await system.call(Names())
    assert (again.name, again.pid != row.pid) == ("a", True)


async def test_one_for_all_also_restarts_a_transient_child_that_is_done_but_no_temporary_one(
    system: System, supervise: Any, story: list[str]
) -> None:
    process = supervise(
        ("done", "transient", (1, ""), (1, "")),
        ("temp", "temporary"),
        ("a", "transient", (2, "broken"), (2, "")),
        strategy="one_for_all",
    )
    assert await system.result(process) == ["done2", None, "a2"]
    assert story == ["done1", "temp1", "a1", "done1-", "a1-", "temp1-", "done2", "a2", "done2-", "a2-"]


async def test_pauses_double_while_restarts_follow_closely(system: System, supervise: Any, story: list[str]) -> None:
    begin = system.loop.time()
    process = supervise(("a", "permanent", *[(0, "broken")] * 9), max_restarts=4, backoff=1.0, max_backoff=4.0)
    with pytest.raises(TooManyRestarts):
        await system.result(process)
    assert system.loop.time() - begin == pytest.approx(1 + 2 + 4 + 4, abs=0.1)


async def test_restarts_that_lie_far_apart_go_on_for_ever(system: System, supervise: Any, story: list[str]) -> None:
    supervise(("a", "permanent", *[(10, "broken")] * 50), max_restarts=1, within=5.0)
    await system.call(Sleep(500))
    assert len([line for line in story if not line.endswith("-")]) > 40


async def test_children_that_are_restarted_for_months_leave_no_outcomes(
    system: System, supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_table, "REMEMBERED", 2)
    children = ("a", "permanent", *[(10, "broken")] * 50), ("b", "permanent"), ("c", "permanent")
    supervise(*children, strategy="one_for_all", max_restarts=1, within=5.0)
    await system.call(Sleep(100))
    assert system.table.pids.last > 20
    assert len(system.table.outcomes) == 0


async def test_killing_the_supervisor_ends_its_children(system: System, supervise: Any, story: list[str]) -> None:
    process = supervise(("a", "permanent"), ("b", "permanent"))
    await system.turns()
    await system.call(Kill(process.pid))
    assert sorted(story) == ["a1", "a1-", "b1", "b1-"]
    assert [row for row in system.table.alive.values() if not row.is_client] == []


async def test_a_time_limit_around_the_call_ends_the_children_and_not_the_supervisor(
    system: System, story: list[str]
) -> None:

    async def supervisor(ctx: Context) -> str:
        try:
            async with asyncio.timeout(3):
                await ctx.supervise([Child("child", {"name": "a"}), Child("child", {"name": "b"})])
        except TimeoutError:
            await ctx.sleep(1)
        return "goes on"

    assert await system.run(supervisor) == "goes on"
    assert sorted(story) == ["a1", "a1-", "b1", "b1-"]


async def test_a_first_start_that_fails_is_the_callers_error_and_leaves_no_child(
    system: System, story: list[str]
) -> None:
    async def supervisor(ctx: Context) -> None:
        await ctx.supervise([Child("child", {"name": "a"}), "no such program"])

    with pytest.raises(UnknownProgram, match="no such program"):
        await system.run(supervisor)
    assert story in ([], ["a1", "a1-"])


async def test_a_restart_that_cannot_be_started_counts_as_one_that_failed(
    system: System, supervise: Any, story: list[str]
) -> None:
    async def squatter(ctx: Context) -> None:
        await ctx.sleep(1.5)
        await ctx.register("a")
        await ctx.sleep(2)

    thief = system.spawn(squatter)
    process = supervise(("a", "transient", (1, "broken"), (1, "")), max_restarts=9)
    assert await system.result(process) == ["a2"]
    assert thief.ended
    lines = [line.fields["why"] for line in await system.call(Logs(process.pid))]
    assert any(NameTaken.__name__ in line or "is the name of process" in line for line in lines)


async def test_restarts_stand_in_the_log_of_the_supervisor(system: System, supervise: Any, story: list[str]) -> None:
    process = supervise(("a", "transient", (1, "broken"), (1, "")))
    await system.result(process)
    (line,) = await system.call(Logs(process.pid))
    assert (line.level, line.event) == ("warning", "one ended and is restarted")
    assert ("broken" in line.fields["why"], line.fields["pause"]) == (True, 1.0)


async def test_supervisors_make_trees_whose_failure_goes_up(system: System, story: list[str]) -> None:
    async def inner(ctx: Context) -> None:
        await ctx.supervise([Child("crash")], max_restarts=1, backoff=0.0)

    async def crash(ctx: Context) -> None:
        raise ValueError("broken")

    async def outer(ctx: Context) -> None:
        await ctx.supervise(["inner"], max_restarts=2, backoff=0.0)

    for function in (inner, crash):
        system.program(function)
    with pytest.raises(TooManyRestarts, match="inner ended again"):
        await system.run(outer)
    assert system.kernel.process_exit.exits == {"failed": 1 + 3 + 6}


@pytest.mark.parametrize(
    "options",
    [
        {"children": []},
        {"strategy": "all_for_nothing"},
        {"max_restarts": -1},
        {"within": 0.0},
        {"backoff": -0.1},
        {"children": [Child("child", {"name": "a"}, restart="sometimes")]},  # type: ignore[arg-type]
    ],
)
async def test_what_makes_no_sense_is_refused(system: System, story: list[str], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidCall):
        await system.call(Supervise(**{"children": [Child("child", {"name": "a"})], **options}))
    assert story == []


# ---- the arithmetic


def test_jitter_leaves_out_up_to_half_of_the_pause() -> None:
    chances = iter([0.0, 0.5, 1.0])
    restarts = RestartIntensity(10, 60.0, 1.0, 100.0, lambda: next(chances))
    assert [restarts.next_pause(now) for now in (0.0, 1.0, 2.0)] == [1.0, 1.5, 2.0]


def test_no_restart_at_all_may_be_allowed() -> None:
    assert RestartIntensity(0, 60.0, 1.0, 1.0, lambda: 0.0).next_pause(0.0) is None


def test_a_thousand_restarts_do_not_overflow_the_pause() -> None:
    restarts = RestartIntensity(5000, 1e9, 0.1, 5.0, lambda: 0.0)
    assert [restarts.next_pause(0.0) for _ in range(5000)][-1] == 5.0
