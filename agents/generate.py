"""Continues a text."""

from typing import Any, Unpack

from llmosd import ChatOptions, Context, agent


@agent(summary="Continues a text.")
async def generate(ctx: Context, prompt: str, **options: Unpack[ChatOptions]) -> Any:
    return await ctx.generate(prompt, **options)
