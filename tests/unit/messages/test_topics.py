"""Topics: each subscriber gets a matching message once, and a full mailbox delays nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import (
    InvalidCall,
    NotFound,
)
from ipc.syscalls import DeadLetters, Publish, Subscribe
from kernel.core.process import Process
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
