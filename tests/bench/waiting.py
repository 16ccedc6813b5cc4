"""Agents that wait for tools, with longer histories than fit in the KV memory.

One driver retains, swaps or discards their KV, whichever wastes least; the other may only retain or discard it. Run by
`make bench`, on the embedded model, through the whole system. Both daemons serve the same agents, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from llmosd import Client, NoDaemon
from llmosd.daemon.settings import load

ROUNDS = 1
AGENTS, CALLS, WORDS, TOOL = 8, 3, 160, 4.0  # words of each agent's first prompt; seconds that a tool takes
TOKENS = 16  # of each reply
MEMORY = 1000  # tokens: those of a few agents
TOKEN_BYTES = 46_080  # KV of the embedded model
AGENT = f'''
"""An agent that thinks, uses a tool, and thinks again about all that it has seen."""

from llmosd import Context, agent


@agent
async def thinker(ctx: Context, seed: int) -> list[float]:
    """Seconds that each of its calls took."""
    text = f"Agent {{seed}}: " + " ".join(str((seed * 7919 + place * 31) % 1000) for place in range({WORDS // 2}))
    seconds = []
    for number in range({CALLS}):
        start = await ctx.time()
        text += await ctx.generate(text, max_tokens={TOKENS}, emit=False)
        seconds.append(await ctx.time() - start)
        await ctx.sleep({TOOL})
        text += f" The tool says {{number}}."
    return seconds
'''
CONFIG = """
model = "smollm2"

[models.smollm2]
path = "embedded"
options = {{ kv_memory = {memory}{more} }}
"""
SCRIPTS = Path(sys.executable).parent
CONSOLE = Console(width=120)


class Run(NamedTuple):
    """`first`: mean seconds of the agents' first calls, `later` of the others; `computed`: tokens of prompts."""

    seconds: float
    first: float
    later: float
    computed: int
    reread: int


def run(more: str) -> Run:
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name, daemon(Path(name), more) as client:
        client.run("ask", {"question": "hello", "max_tokens": 2})
        before = client.slots()[0]
        start = time.perf_counter()
        tasks = [client.submit("thinker", {"seed": seed}) for seed in range(AGENTS)]
        found = [task.result() for task in tasks]
        seconds = time.perf_counter() - start
        after = client.slots()[0]
    asked, hits = after.prompt_tokens - before.prompt_tokens, after.prompt_hits - before.prompt_hits
    return Run(
        seconds,
        statistics.mean(times[0] for times in found),
        statistics.mean(second for times in found for second in times[1:]),
        asked - hits,
        after.prompt_reread - before.prompt_reread,
    )


@contextmanager
def daemon(folder: Path, more: str) -> Iterator[Client]:
    config, agents, socket = folder / "config.toml", folder / "agents", folder / "llmosd.sock"
    config.write_text(CONFIG.format(memory=MEMORY * TOKEN_BYTES, more=more))
    agents.mkdir()
    (agents / "thinker.py").write_text(AGENT)
    command = [SCRIPTS / "llmosd", "--config", config, "--socket", socket, "--state", folder, "--agents", agents]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        while True:
            try:
                client = Client(socket)
                client.connect()
                break
            except NoDaemon:
                if process.poll() is not None:
                    raise SystemExit("the daemon did not start") from None
                time.sleep(0.05)
        with client:
            yield client
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    load()
    ways = {"retained or discarded": ", kv_disk = 0", "retained, swapped or discarded": ""}
    rounds: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, more in ways.items():
            rounds[name].append(run(more))
    table = Table(
        title=f"{AGENTS} agents of {CALLS} calls with a tool of {TOOL:g} s after each; memory for {MEMORY:,} tokens"
    )
    columns = ("", "seconds", "a first call", "a later call", "prompt tokens computed", "read from disk", "ratio")
    for column in columns:
        table.add_column(column, justify="right")
    least: float | None = None
    for name, runs in rounds.items():
        middle = [statistics.median(values) for values in zip(*runs, strict=True)]
        least = least or middle[2]
        seconds, first, later, computed, reread = middle
        row = f"{seconds:.1f}", f"{first:.2f}", f"{later:.2f}", f"{computed:,.0f}", f"{reread:,.0f}"
        table.add_row(name, *row, f"{least / later:.1f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
