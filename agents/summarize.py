"""Summarizes a text in a few sentences."""

from typing import Any, Unpack

from llmosd import ChatOptions, Context, agent

INSTRUCTION = "Summarize the text of the user in at most three sentences. Keep names and numbers."


@agent(summary="Summarizes a text in a few sentences.")
async def summarize(ctx: Context, text: str, **options: Unpack[ChatOptions]) -> Any:
    return await ctx.chat(
        [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": f"Text to summarize:\n\n{text}"}],
        **options,
    )
