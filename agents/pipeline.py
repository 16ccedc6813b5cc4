"""A pipeline with back-pressure: a source, stages that change each item, and a sink that may be slow.

Each part has a short mailbox. When the mailbox of a part is full, the part before it waits, and so on, back to the
source. So only a few items are in the pipeline at any time, however long the input is.
"""

from collections.abc import Callable

from llmosd import Context, Limits, agent

STAGES: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "squeeze": lambda text: " ".join(text.split()),
}
END = "end"  # type of the message that follows the last item


@agent(summary="A pipeline with back-pressure: cleans texts, stage by stage.")
async def pipeline(ctx: Context, texts: list[str], depth: int = 4, pause: float = 0.0) -> list[str]:
    """Passes `texts` through all stages, in order, and returns the results.

    A mailbox holds `depth` items; the sink pauses for `pause` seconds after each item. If a part fails, all parts fail.
    """
    bound = Limits(mailbox=depth)
    sink = following = await ctx.spawn("sink", {"pause": pause}, limits=bound, link=True)
    for name in reversed(STAGES):
        following = await ctx.spawn("stage", {"name": name, "following": following}, limits=bound, link=True)
    for text in texts:
        await ctx.send(following, text)
    await ctx.send(following, None, type=END)
    cleaned: list[str] = await ctx.wait(sink)
    return cleaned


@agent(summary="A stage of a pipeline.")
async def stage(ctx: Context, name: str, following: int) -> None:
    """Changes each item and passes it on. Waits while the next mailbox is full."""
    while (item := await ctx.receive()).type != END:
        await ctx.send(following, STAGES[name](item.body))
    await ctx.send(following, None, type=END)


@agent(summary="The end of a pipeline.")
async def sink(ctx: Context, pause: float) -> list[str]:
    """Collects the items, one every `pause` seconds."""
    items = []
    while (item := await ctx.receive()).type != END:
        items.append(item.body)
        await ctx.sleep(pause)
    return items
