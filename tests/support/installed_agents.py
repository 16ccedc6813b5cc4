"""Agents of an installed module, as the tests of entry points need them. Only the program loader imports it."""

from __future__ import annotations

from llmosd import Context, agent

N = 1


@agent
async def installed(ctx: Context) -> str:
    return "package"


@agent(name="other name")
async def named(ctx: Context) -> str:
    return "other"
