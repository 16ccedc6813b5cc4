"""Topics: each subscriber gets a matching message once, and a full mailbox delays nobody else."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import InvalidCall, LimitExceeded, NotFound
from ipc.syscalls import DeadLetters, Kill, Ping, Publish, Receive, Subscribe, Unsubscribe
from kernel.core.process import Process
from kernel.messages import topics as bounds
from kernel.messages.publications import DELIVERIES
from kernel.messages.topics import Topics
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System


async def collect(ctx: Context, pattern: str, count: int) -> list[Any]:
    await ctx.subscribe(pattern)
    return [(message.type, message.body) for message in [await ctx.receive() for _ in range(count)]]


async def test_subscribers_get_what_matches_once_each(system: System) -> None:
    targets = {
        pattern: system.spawn(collect, pattern=pattern, count=count)
        for pattern, count in (("news.sport", 1), ("news.*", 2), ("news.#", 4), ("#", 5))
    }
    await system.turns()
    counts = [
        await system.call(Publish(topic, topic)) for topic in ("news.sport", "news.art", "news", "news.a.b", "other")
    ]
    assert counts == [4, 3, 2, 2, 1]
    got = {pattern: [body for _, body in await system.result(target)] for pattern, target in targets.items()}
    assert got == {
        "news.sport": ["news.sport"],
        "news.*": ["news.sport", "news.art"],
        "news.#": ["news.sport", "news.art", "news", "news.a.b"],
        "#": ["news.sport", "news.art", "news", "news.a.b", "other"],
    }


async def test_a_full_subscriber_holds_up_nobody_and_its_copy_is_a_dead_letter(system: System) -> None:
    slow = system.spawn(forever)
    slow.open_mailbox().capacity = 1
    await system.call(Subscribe("t"), slow)
    assert [await system.call(Publish("t", n)) for n in range(3)] == [1, 0, 0]
    letters = await system.call(DeadLetters())
    assert [(one.message.recipient, one.message.type, one.reason) for one in letters] == [
        (slow.pid, "t", "the subscriber's mailbox was full")
    ] * 2


async def test_unsubscribed_and_ended_processes_get_nothing(system: System) -> None:
    async def agent(ctx: Context) -> None:
        await ctx.subscribe("t")
        await ctx.unsubscribe("t")
        with pytest.raises(NotFound, match="it has: none"):
            await ctx.unsubscribe("t")
        await ctx.subscribe("t")

    assert await system.run(agent) is None
    assert await system.call(Publish("t", None)) == 0


@pytest.mark.parametrize("pattern", ["", "a..b", "a*", "#.a", "a.b#", ".".join("x" * 33)])
async def test_bad_patterns_are_refused(system: System, pattern: str) -> None:
    with pytest.raises(InvalidCall):
        await system.call(Subscribe(pattern))


async def test_nobody_publishes_to_a_pattern(system: System) -> None:
    with pytest.raises(InvalidCall, match="wildcards are for subscriptions"):
        await system.call(Publish("a.*", None))


WORD = st.sampled_from("abc")


TOPIC = st.lists(WORD, min_size=1, max_size=4)


PATTERN = st.builds(
    lambda words, rest: words + rest, st.lists(WORD | st.just("*"), max_size=4), st.sampled_from([[], ["#"]])
)


def matches(pattern: list[str], topic: list[str]) -> bool:
    if pattern[-1] == "#":
        pattern, topic = pattern[:-1], topic[: len(pattern) - 1]
    return len(pattern) == len(topic) and all(ours in ("*", word) for ours, word in zip(pattern, topic, strict=True))


@given(st.lists(st.tuples(st.integers(0, 3), PATTERN.filter(len), st.booleans()), max_size=20), TOPIC)
def test_the_tree_finds_whom_a_look_at_every_pattern_would(steps: list[Any], topic: list[str]) -> None:
    topics, model = Topics(), set()
    processes = [Process(n, None, "p", {}, owner="", priority=0) for n in range(4)]
    for number, pattern, subscribe in steps:
        if subscribe:
            topics.subscribe(processes[number], ".".join(pattern))
            model.add((number, tuple(pattern)))
        elif (number, tuple(pattern)) in model:
            topics.unsubscribe(processes[number], ".".join(pattern))
            model.discard((number, tuple(pattern)))
    search = topics.search(".".join(topic))
    while not search.advance():
        pass
    found = search.found
    assert sorted(one.pid for one in found) == sorted({n for n, pattern in model if matches(list(pattern), topic)})
    for process in processes:
        topics.process_ended(process)
    assert topics._root.next == {}


# ---- many subscribers


MANY = 20 * DELIVERIES


def subscribed(system: System, pattern: str, count: int = MANY) -> list[Process]:
    """As many clients, which subscribe to `pattern`."""
    clients = [system.kernel.lifecycle.open_client("me") for _ in range(count)]
    for client in clients:
        system.kernel.gate.enter(client, Subscribe(pattern))
    return clients


async def bodies(system: System, client: Process) -> list[Any]:
    box = client.mailbox
    return [(await system.call(Receive(0), client)).body for _ in range(0 if box is None else box.count)]


async def test_others_get_their_turns_while_many_subscribers_get_a_message(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.messages.publications.SLICE", 0.0)
    clients = subscribed(system, "t")
    publishing = system.thread(system.kernel.gate.enter(system.client, Publish("t", 1)))
    answered = 0
    while not publishing.done():
        answered += (await system.call(Ping(b"x"))).payload == b"x"
        await asyncio.sleep(0)
    assert answered > 1
    assert publishing.result() == MANY
    assert [await bodies(system, client) for client in clients] == [[1]] * MANY


async def test_a_search_over_many_patterns_gives_others_their_turns(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.messages.publications.SLICE", 0.0)
    for words in itertools.product("a*", repeat=12):
        await system.call(Subscribe(".".join(words)))
    publishing = system.thread(system.kernel.gate.enter(system.client, Publish(".".join("a" * 12), 1)))
    turns = 0
    while not publishing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 4
    assert publishing.result() == 1


async def test_publications_of_one_process_stay_in_order(system: System) -> None:
    clients = subscribed(system, "many")
    await system.call(Subscribe("one"), clients[-1])
    answers = [system.kernel.gate.enter(system.client, Publish(topic, topic)) for topic in ("many", "one", "many")]
    assert [await system.thread(answer) for answer in answers] == [MANY, 1, MANY]
    assert await bodies(system, clients[-1]) == ["many", "one", "many"]
    assert await bodies(system, clients[0]) == ["many", "many"]


async def test_a_publication_reaches_all_although_its_publisher_ends_half_way(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.messages.publications.SLICE", 0.0)

    async def publisher(ctx: Context) -> None:
        await ctx.publish("t", "x" * 9000)

    clients = subscribed(system, "t")
    process = system.spawn(publisher)
    while not (box := clients[0].mailbox) or not box.count:
        await asyncio.sleep(0)
    assert clients[-1].mailbox is None
    system.kernel.process_exit.end(clients[-2], "killed", "a subscriber ends")
    await system.call(Kill(process.pid))
    while clients[-1].mailbox is None:
        await asyncio.sleep(0)
    got = [await bodies(system, client) for client in clients]
    assert got == [["x" * 9000]] * (MANY - 2) + [[], ["x" * 9000]]
    await asyncio.sleep(0)
    assert system.kernel.messaging.memory.used == 0


# ---- bounds


async def test_the_patterns_of_a_process_and_of_all_are_bounded(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "OF_PROCESS", 2)
    monkeypatch.setattr(bounds, "OF_ALL", 5)
    other = system.spawn(forever)
    await system.call(Subscribe("a.b"))
    await system.call(Subscribe("a.b"))
    await system.call(Subscribe("c"))
    with pytest.raises(LimitExceeded, match="3 patterns"):
        await system.call(Subscribe("d"))
    await system.call(Subscribe("x.y"), other)
    with pytest.raises(LimitExceeded, match="6 words"):
        await system.call(Subscribe("z"), other)
    await system.call(Unsubscribe("c"))
    await system.call(Subscribe("z"), other)
    await system.call(Kill(other.pid))
    await system.call(Subscribe("x.y.z"))


async def test_a_pattern_is_at_most_a_thousand_characters_long(system: System) -> None:
    await system.call(Subscribe("x" * bounds.MAX_PATTERN))
    with pytest.raises(InvalidCall, match="1 to 1024 characters"):
        await system.call(Subscribe("x" * (bounds.MAX_PATTERN + 1)))
