"""Continues a text."""

from typing import Unpack

from llmosd import ChatOptions, Context, agent


@agent(summary="Continues a text.")
async def generate(ctx: Context, prompt: str, **options: Unpack[ChatOptions]) -> str:
    return await ctx.generate(prompt, **options)
