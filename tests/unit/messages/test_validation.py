"""The checks of a message: a declared type, and a size and a priority within bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import llmosd
from ipc.abi import AGENT_ATTRIBUTE
from ipc.codec import encode
from ipc.errors import (
    BadMessage,
    InvalidCall,
    LlmosError,
    MessageTooLarge,
    UndeclaredType,
)
from ipc.syscalls import Send
from kernel.messages.validation import MAX_BODY
from kernel.programs.program import Program
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System

# ---- declared types


class Order(msgspec.Struct, frozen=True):
    item: str
    count: int = 1


@llmosd.agent(accepts=[Order])
async def shop(ctx: Context) -> list[Any]:
    return [message.body for message in [await ctx.receive(type=Order), await ctx.receive()]]


async def test_declared_messages_arrive_as_their_struct_from_the_loop_and_from_a_socket(system: System) -> None:
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
    system: System, body: Any, kind: str, error: type[LlmosError], text: str
) -> None:
    target = system.spawn(declared(system))
    with pytest.raises(error, match=text):
        await system.call(Send(target.pid, body, type=kind))
    assert target.mailbox is None or target.mailbox.count == 0


async def test_a_struct_names_its_type(system: System) -> None:
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


def declared(system: System) -> str:

    program = Program(shop, getattr(shop, AGENT_ATTRIBUTE), "test")
    return system.install(program)


# ---- bounds


async def test_a_message_that_is_too_large_is_refused_with_both_sizes(system: System) -> None:
    target = system.spawn(forever)
    for body in ("x" * (MAX_BODY + 1), b"x" * (MAX_BODY + 1), ["x" * MAX_BODY]):
        with pytest.raises(MessageTooLarge) as caught:
            await system.call(Send(target.pid, body))
        assert caught.value.data["size"] > caught.value.data["limit"] == MAX_BODY
    assert await system.call(Send(target.pid, "x" * MAX_BODY))


async def test_a_priority_out_of_bounds_is_refused(system: System) -> None:
    target = system.spawn(forever)
    for priority in (-21, 21):
        with pytest.raises(InvalidCall, match="from -20 to 20"):
            await system.call(Send(target.pid, None, priority=priority))
