"""A file of agents that is broken at some starts of the daemon, as if an editor had saved half a line.

A trial writes it before each start. Its durable tasks have to continue at the next start with the whole file.
"""

from __future__ import annotations

from pathlib import Path

WHOLE = '''
from llmosd import Context, agent


@agent(durable=True)
async def fragile(ctx: Context, number: int, count: int) -> list:
    """Counts in its memory; returns what it has counted."""
    counted = []
    for step in range(count):
        await ctx.memory.set("step", number + step)
        await ctx.sleep(0.01)
        counted.append(await ctx.memory.get("step"))
    return counted
'''


class FragileFile:
    """The file, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def write(self, *, broken: bool) -> None:
        (self.folder / "fragile.py").write_text(WHOLE + "def half a line(:\n" if broken else WHOLE)
