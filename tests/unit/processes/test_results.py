"""The results of agents: a value, or a failure with a name."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import AgentFailed, NotEncodable, UnknownProcess
from llmosd.context import Context
from tests.support.agents import listener
from tests.support.system import System


async def test_a_result_that_cannot_travel_is_a_named_failure(system: System) -> None:
    async def strange(ctx: Context) -> object:
        return object()

    with pytest.raises(NotEncodable, match="the result of strange"):
        await system.run(strange)


async def test_an_agent_that_raises_fails_with_its_traceback(system: System) -> None:
    async def broken(ctx: Context) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(AgentFailed, match="broken: ZeroDivisionError: by zero") as caught:
        await system.run(broken)
    assert "test_results.py" in caught.value.data["traceback"]
    assert "in broken" in caught.value.data["traceback"]


async def test_an_agent_that_lets_a_kernel_error_pass_fails_with_that_error(system: System) -> None:
    async def careless(ctx: Context) -> None:
        await ctx.wait(12345)

    with pytest.raises(UnknownProcess) as caught:
        await system.run(careless)
    facts = dict(caught.value.data)
    assert f"{__file__}:{careless.__code__.co_firstlineno + 1}" == facts.pop("place")
    assert "await ctx.wait(12345)" in facts.pop("traceback")
    assert facts == {"pid": 12345}


async def test_an_agent_that_cancels_itself_fails(system: System) -> None:
    async def desperate(ctx: Context) -> None:
        raise asyncio.CancelledError

    with pytest.raises(AgentFailed, match="cancelled itself"):
        await system.run(desperate)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_an_exit_in_an_agent_ends_only_that_agent(system: System, kind: type[BaseException]) -> None:
    async def leaver(ctx: Context) -> None:
        raise kind(3)

    other = system.spawn(listener)
    with pytest.raises(AgentFailed, match=kind.__name__):
        await system.run(leaver)
    assert not other.ended
