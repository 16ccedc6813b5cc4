"""The example agents that ship work as they claim: supervision, back-pressure, sharing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.syscalls import Kill, Limits, Names, Ps, Regions, Spawn
from kernel.models.spec import ModelSpec
from tests.support.paths import AGENTS
from tests.support.system import System


@pytest.fixture
def models() -> dict[str, ModelSpec]:
    options = {"step_seconds": 0.1, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 8}
    return {"sim": ModelSpec(driver="simulated", slots=8, lease=4, options=options)}


@pytest.fixture(autouse=True)
async def shipped(system: System) -> None:
    system.find_programs_in(AGENTS)
    await asyncio.to_thread(system.programs.refresh)


def rows(system: System, program: str) -> list[Any]:
    return [process for process in system.table.alive.values() if process.program == program]


# ---- one call to the model


@pytest.mark.parametrize(("program", "prompt_tokens"), [("ask", 1), ("generate", 1), ("summarize", 19)])
async def test_programs_of_one_call_pass_all_options_on(system: System, program: str, prompt_tokens: int) -> None:
    assert len((await system.run(program, "hello", max_tokens=3)).split()) == 3
    reply = await system.run(program, "hello", full=True, max_tokens=3)
    assert (reply["reason"], reply["tokens"], reply["prompt_tokens"]) == ("length", 3, prompt_tokens)
    assert await system.run(program, "hello", choices=["yes", "no"]) == "yes"


# ---- the customer-service desk

LETTERS = {
    "I was charged twice on my last invoice.": ("billing", "billing"),
    "The app shows an error after the update!": ("technical", "technical"),
    "Do you also sell umbrellas?": ("general", "general"),
    "My refund never came; you will hear from my lawyer.": ("billing", "senior"),
}


async def test_letters_reach_their_specialists_and_the_delicate_ones_the_senior(system: System) -> None:
    answers = await system.run("desk", list(LETTERS))
    assert [(answer["topic"], answer["by"]) for answer in answers] == list(LETTERS.values())
    assert all(answer["answer"] for answer in answers)
    assert await system.call(Names()) == []


async def test_a_specialist_that_dies_is_replaced_and_the_desk_goes_on(system: System) -> None:
    process = system.spawn("desk", ["I was charged twice."] * 3 + ["an error"] * 3, max_tokens=100)
    await asyncio.sleep(1)
    names = {row.name.split()[-1]: row.pid for row in await system.call(Names())}
    assert set(names) == {"senior", "billing", "technical", "general", "router"}
    await system.call(Kill(names["general"]))
    await asyncio.sleep(1)
    again = {row.name.split()[-1]: row.pid for row in await system.call(Names())}
    assert again["general"] not in (names["general"], None)
    answers = await system.result(process)
    assert [answer["by"] for answer in answers] == ["billing"] * 3 + ["technical"] * 3


# ---- the pipeline


async def test_a_pipeline_keeps_order_and_a_slow_sink_holds_up_the_source(system: System) -> None:
    texts = [f"  Item {n}  IS   here " for n in range(200)]
    process = system.spawn("pipeline", texts, depth=4, pause=1.0)
    deepest = 0
    for _ in range(100):
        await asyncio.sleep(1.3)
        boxes = [row.mailbox for row in await system.call(Ps()) if row.program in ("stage", "sink")]
        deepest = max(deepest, *boxes)
        under_way = process.messages_sent - rows(system, "sink")[0].messages_received
        # Four mailboxes of four items, one item in each part, and one that the source is about to send.
        assert under_way <= 4 * 4 + 4 + 1
    assert deepest == 4
    assert await system.result(process) == [f"item {n} is here" for n in range(200)]


async def test_a_broken_stage_ends_the_whole_pipeline(system: System) -> None:
    process = system.spawn("pipeline", ["a"] * 1000, pause=1.0)
    await asyncio.sleep(3)
    await system.call(Kill(rows(system, "stage")[1].pid))
    assert (await system.status(process)).reason == "linked"
    assert [row for row in system.table.alive.values() if not row.is_client] == []


# ---- the map-reduce


async def test_every_document_is_asked_about_and_counted_once(system: System) -> None:
    report = await system.run("mapreduce", [f"document {n}" for n in range(100)])
    assert len(report["answers"]) == 100
    assert sum(report["tally"].values()) == 100
    assert report["failures"] == []
    assert list(report["tally"].values()) == sorted(report["tally"].values(), reverse=True)
    assert await system.call(Regions()) == []


async def test_documents_that_fail_are_reported_and_cost_no_other(system: System) -> None:
    pid = await system.call(
        Spawn("mapreduce", {"documents": [f"document {n}" for n in range(10)]}, limits=Limits(tokens=8))
    )
    report = await system.result(pid)
    assert len(report["failures"]) == 10
    assert report["answers"] == []
    assert all("limit of 8 tokens" in failure for failure in report["failures"])
    assert report["tally"] == {}
