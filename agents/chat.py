"""Continues a conversation: `llmos chat` runs it once for each line of the user."""

from typing import Any, Unpack

from llmosd import ChatOptions, Context, agent


@agent(summary="Answers the last message of a conversation.")
async def chat(ctx: Context, messages: list[dict[str, str]], system: str = "", **options: Unpack[ChatOptions]) -> Any:
    instruction = [{"role": "system", "content": system}] if system else []
    return await ctx.chat([*instruction, *messages], **options)
