"""Answers one question."""

from typing import Any, Unpack

from llmosd import ChatOptions, Context, agent


@agent(summary="Answers one question.")
async def ask(ctx: Context, question: str, **options: Unpack[ChatOptions]) -> Any:
    return await ctx.chat([{"role": "user", "content": question}], **options)
