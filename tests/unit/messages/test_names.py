"""Names: they address messages and calls; each has one holder, and is free again when its holder ends."""

from __future__ import annotations

import pytest

from ipc.errors import (
    InvalidCall,
    LimitExceeded,
    NameTaken,
    NotPermitted,
    UnknownName,
)
from ipc.syscalls import Call, Kill, Names, Register, Send, Unregister
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.system import System


async def test_messages_and_calls_go_by_name(system: System) -> None:
    async def server(ctx: Context) -> None:
        await ctx.register("planner")
        await ctx.reply(await ctx.receive(), "planned")
        assert (await ctx.receive()).body == "note"

    target = system.spawn(server)
    await system.turns()
    assert await system.call(Call("planner", "plan")) == "planned"
    await system.call(Send("planner", "note"))
    assert (await system.status(target)).reason == "done"


async def test_a_name_is_free_again_when_its_holder_ends(system: System) -> None:
    target = system.spawn(forever)
    await system.call(Register("x", target.pid))
    assert [(info.name, info.pid) for info in await system.call(Names())] == [("x", target.pid)]
    await system.call(Kill(target.pid))
    assert await system.call(Names()) == []
    with pytest.raises(UnknownName, match="registered as 'x'"):
        await system.call(Send("x", None))


async def test_a_taken_name_and_one_of_another_are_refused(system: System) -> None:
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
async def test_what_cannot_be_a_name(system: System, name: str) -> None:
    with pytest.raises(InvalidCall, match="cannot be a name"):
        await system.call(Register(name))


async def test_the_names_of_a_process_are_bounded(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.messages.names.MOST_NAMES", 2)
    for name in ("one", "two", "one"):
        await system.call(Register(name))
    with pytest.raises(LimitExceeded, match="has 2 names"):
        await system.call(Register("three"))
    await system.call(Unregister("one"))
    await system.call(Register("three"))
