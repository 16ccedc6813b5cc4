"""Names, topics, declared types and dead letters."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmosd
from ipc.abi import AGENT_ATTRIBUTE
from ipc.codec import encode
from ipc.errors import (
    BadMessage,
    InvalidCall,
    LlmosError,
    MessageTooLarge,
    NameTaken,
    NotFound,
    NotPermitted,
    UndeclaredType,
    UnknownName,
)
from ipc.syscalls import Call, DeadLetters, Kill, Names, PeekMailbox, Publish, Register, Send, Subscribe, Unregister
from kernel.envelopes import MAX_BODY
from kernel.process import Process
from kernel.programs import Program
from kernel.topics import Topics
from llmosd.context import Context
from tests.support.agents import forever


async def collect(ctx: Context, pattern: str, count: int) -> list[Any]:
    await ctx.subscribe(pattern)
    return [(message.type, message.body) for message in [await ctx.receive() for _ in range(count)]]


# ---- names


async def test_messages_and_calls_go_by_name(system: Any) -> None:
    async def server(ctx: Context) -> None:
        await ctx.register("planner")
        await ctx.reply(await ctx.receive(), "planned")
        assert (await ctx.receive()).body == "note"

    target = system.spawn(server)
    await system.turns()
    assert await system.call(Call("planner", "plan")) == "planned"
    await system.call(Send("planner", "note"))
    assert (await system.status(target)).reason == "done"


async def test_a_name_is_free_again_when_its_holder_ends(system: Any) -> None:
    target = system.spawn(forever)
    await system.call(Register("x", target.pid))
    assert [(info.name, info.pid) for info in await system.call(Names())] == [("x", target.pid)]
    await system.call(Kill(target.pid))
    assert await system.call(Names()) == []
    with pytest.raises(UnknownName, match="registered as 'x'"):
        await system.call(Send("x", None))


async def test_a_taken_name_and_one_of_another_are_refused(system: Any) -> None:
    one, two = system.spawn(forever), system.spawn(forever)
    await system.call(Register("x"), one)
    await system.call(Register("x"), one)
    with pytest.raises(NameTaken) as caught:
        await system.call(Register("x"), two)
    assert caught.value.data == {"name": "x", "pid": one.pid}
    with pytest.raises(NotPermitted):
        await system.call(Unregister("x"), two)
    await system.call(Unregister("x"), one)
    await system.call(Register("x"), two)
    await system.call(Kill(one.pid))
    assert [info.pid for info in await system.call(Names())] == [two.pid]


@pytest.mark.parametrize("name", ["", "12", "-3", "a\nb", "x" * 201])
async def test_what_cannot_be_a_name(system: Any, name: str) -> None:
    with pytest.raises(InvalidCall, match="cannot be a name"):
        await system.call(Register(name))


# ---- topics


async def test_subscribers_get_what_matches_once_each(system: Any) -> None:
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


async def test_a_full_subscriber_holds_up_nobody_and_its_copy_is_a_dead_letter(system: Any) -> None:
    slow = system.spawn(forever)
    slow.box().capacity = 1
    await system.call(Subscribe("t"), slow)
    assert [await system.call(Publish("t", n)) for n in range(3)] == [1, 0, 0]
    letters = await system.call(DeadLetters())
    assert [(one.message.recipient, one.message.type, one.reason) for one in letters] == [
        (slow.pid, "t", "the subscriber's mailbox was full")
    ] * 2


async def test_unsubscribed_and_ended_processes_get_nothing(system: Any) -> None:
    async def agent(ctx: Context) -> None:
        await ctx.subscribe("t")
        await ctx.unsubscribe("t")
        with pytest.raises(NotFound, match="it has: none"):
            await ctx.unsubscribe("t")
        await ctx.subscribe("t")

    assert await system.run(agent) is None
    assert await system.call(Publish("t", None)) == 0


@pytest.mark.parametrize("pattern", ["", "a..b", "a*", "#.a", "a.b#", ".".join("x" * 33)])
async def test_bad_patterns_are_refused(system: Any, pattern: str) -> None:
    with pytest.raises(InvalidCall):
        await system.call(Subscribe(pattern))


async def test_nobody_publishes_to_a_pattern(system: Any) -> None:
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
    found = topics.subscribers(".".join(topic))
    assert sorted(one.pid for one in found) == sorted({n for n, pattern in model if matches(list(pattern), topic)})
    for process in processes:
        topics.process_ended(process)
    assert topics._root.next == {}


# ---- declared types


class Order(msgspec.Struct, frozen=True):
    item: str
    count: int = 1


@llmosd.agent(accepts=[Order])
async def shop(ctx: Context) -> list[Any]:
    return [message.body for message in [await ctx.receive(type=Order), await ctx.receive()]]


async def test_declared_messages_arrive_as_their_struct_from_the_loop_and_from_a_socket(system: Any) -> None:
    target = system.spawn(declared(system))
    await system.call(Send(target.pid, Order("tea")))
    await system.call(Send(target.pid, msgspec.Raw(encode({"item": "milk", "count": 2})), type="Order"))
    got = await system.result(target)
    assert [msgspec.convert(one, Order) for one in got] == [Order("tea"), Order("milk", 2)]


@pytest.mark.parametrize(
    ("body", "kind", "error", "text"),
    [
        ({"item": "tea"}, "Cancel", UndeclaredType, "it declares: Order"),
        ("tea", "", UndeclaredType, "no message of type ''"),
        ({"item": 3}, "Order", BadMessage, "Expected `str`, got `int` - at `\\$.item`"),
        (msgspec.Raw(b"\xc1"), "Order", BadMessage, "Order"),
    ],
)
async def test_what_is_not_declared_is_the_senders_error(
    system: Any, body: Any, kind: str, error: type[LlmosError], text: str
) -> None:
    target = system.spawn(declared(system))
    with pytest.raises(error, match=text):
        await system.call(Send(target.pid, body, type=kind))
    assert target.mailbox is None or target.mailbox.count == 0


async def test_a_struct_names_its_type(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        return (await ctx.receive()).type

    target = system.spawn(agent)
    await system.call(Send(target.pid, Order("tea")))
    assert await system.result(target) == "Order"


def test_only_frozen_structs_can_be_declared() -> None:
    class Loose(msgspec.Struct):
        item: str

    with pytest.raises(TypeError, match="frozen"):
        llmosd.agent(accepts=[Loose])


def declared(system: Any) -> str:

    program = Program(shop, getattr(shop, AGENT_ATTRIBUTE), "test")
    return system.install(program)


# ---- bounds, and looking in


async def test_a_message_that_is_too_large_is_refused_with_both_sizes(system: Any) -> None:
    target = system.spawn(forever)
    for body in ("x" * (MAX_BODY + 1), b"x" * (MAX_BODY + 1), ["x" * MAX_BODY]):
        with pytest.raises(MessageTooLarge) as caught:
            await system.call(Send(target.pid, body))
        assert caught.value.data["size"] > caught.value.data["limit"] == MAX_BODY
    assert await system.call(Send(target.pid, "x" * MAX_BODY))


async def test_a_priority_out_of_bounds_is_refused(system: Any) -> None:
    target = system.spawn(forever)
    for priority in (-21, 21):
        with pytest.raises(InvalidCall, match="from -20 to 20"):
            await system.call(Send(target.pid, None, priority=priority))


async def test_a_full_mailbox_makes_room_by_dropping_what_is_void(system: Any) -> None:
    target = system.spawn(forever)
    target.box().capacity = 2
    for _ in range(2):
        await system.call(Send(target.pid, "void", lifetime=1))
    system.loop.call_later(2, lambda: None)
    await asyncio.sleep(2)
    await system.call(Send(target.pid, "fresh", wait=False))
    assert [heading.size for heading in await system.call(PeekMailbox(target.pid))] == [5]
    assert [letter.reason for letter in await system.call(DeadLetters())] == ["its deadline passed"] * 2


async def test_the_mailbox_is_shown_in_the_order_of_receipt(system: Any) -> None:
    target = system.spawn(forever)
    for priority in (0, 5, -5, 5):
        await system.call(Send(target.pid, "body", priority=priority, type=f"p{priority}"))
    shown = await system.call(PeekMailbox(target.pid, 3))
    assert [(one.type, one.size) for one in shown] == [("p5", 4), ("p5", 4), ("p0", 4)]


async def test_control_messages_pass_a_full_mailbox_and_come_first(system: Any) -> None:
    async def agent(ctx: Context) -> list[Any]:
        await ctx.sleep(1)
        return [(message.type, message.sender) for message in [await ctx.receive() for _ in range(2)]]

    target = system.spawn(agent)
    target.box().capacity = 1
    await system.call(Send(target.pid, None, priority=20, type="urgent"))
    system.kernel.messaging.notify(target, "down", 7)
    assert await system.result(target) == [["down", 0], ["urgent", system.client.pid]]


async def test_a_process_called_client_is_no_client(system: Any) -> None:
    async def client(ctx: Context) -> Any:
        return (await ctx.receive()).body

    target = system.spawn(client)
    await system.call(Send(target.pid, {"decoded": True}))
    assert await system.result(target) == {"decoded": True}
