"""Records a journal for the tests of later versions: `python -m tests.support.recorded_journal FILE`.

A recording is the state folder of a daemon that was stopped with tasks at every stage: ended, waiting, in the middle of
a generation, suspended. `tests/system/test_recorded_journals.py` starts a daemon on a copy of each.
"""

from __future__ import annotations

import os
import signal
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from ipc.errors import LlmosError
from ipc.syscalls import ProcessInfo
from llmosd import Client
from tests.support.daemon import RunningDaemon, eventually
from tests.support.paths import ROOT

JOURNALS = ROOT / "tests" / "system" / "journals"
SETTINGS = "[models.simulated]\nslots = 2\noptions = {step_seconds = 0.01}\n"
WAITING = ("archivist", "counter", "halted", "echo", "asker", "sleeper")
TOKENS = 300  # of the story that the stop interrupts


# Agents whose tasks the recordings hold, at every stage that a stop can leave. Never change one: a journal that was
# recorded with it replays it. Add another agent instead.
AGENTS = r'''
import os

from llmosd import Context, agent, tool


@tool
def append(line: str) -> str:
    """Append `line` to the file that the environment names, each time that this is called."""
    with open(os.environ["LEDGER"], "a") as lines:
        lines.write(f"{line}\n")
    return line


@agent(durable=True)
async def archivist(ctx: Context) -> dict:
    """Makes one call of each kind, and then waits for a message of type "close"."""
    started = await ctx.time()
    await ctx.register("archivist")
    await ctx.subscribe("news.*")
    await ctx.memory.set("first", [1, "two", 3.0])
    await ctx.shared("catalogue", durable=True).set({"pages": 7})
    title = await ctx.generate("a title", max_tokens=4, seed=5)
    await ctx.tool("append", line="before the stop")
    page = await ctx.wait(await ctx.spawn("page", {"number": 1}))
    await ctx.receive(type="close")
    question = await ctx.receive(type="question")
    await ctx.reply(question, "page 7")
    news = await ctx.receive(type="news")
    await ctx.tool("append", line="after the stop")
    return {
        "title": title,
        "page": page,
        "first": await ctx.memory.get("first"),
        "catalogue": await ctx.shared("catalogue", durable=True).get(),
        "news": news.body,
        "time passed": await ctx.time() > started,
    }


@agent(durable=True)
async def page(ctx: Context, number: int) -> str:
    return f"page {number}, drawn {await ctx.random() < 1}"


@agent(durable=True)
async def asker(ctx: Context) -> str:
    """Waits for the reply of an archivist that does not reply yet."""
    return await ctx.call("archivist", "which page?", type="question")


@agent(durable=True)
async def counter(ctx: Context) -> int:
    """Adds up the numbers that are sent to it, with a checkpoint after each, until their sum is 6."""
    await ctx.register("counter")
    total = await ctx.checkpoint(0)
    while total < 6:
        total = await ctx.checkpoint(total + (await ctx.receive()).body)
    return total


@agent(durable=True)
async def story(ctx: Context, tokens: int) -> str:
    return await ctx.generate("Tell me a story.", max_tokens=tokens, seed=7)


@agent(durable=True)
async def sleeper(ctx: Context) -> str:
    await ctx.sleep(5)
    return "slept"


@agent(durable=True)
async def halted(ctx: Context) -> str:
    """Is suspended while it waits."""
    await ctx.register("halted")
    return (await ctx.receive()).body


@agent
async def echo(ctx: Context) -> list:
    """Is not durable: it starts again from its beginning."""
    await ctx.register("echo")
    return [ctx.attempt, (await ctx.receive()).body]


@agent
async def quick(ctx: Context, number: int) -> int:
    return number + 1


@agent
async def broken(ctx: Context) -> None:
    raise ValueError("broken on purpose")
'''


def launch(folder: Path, ledger: Path) -> RunningDaemon:
    """A daemon with the simulated model and the recorded programs, on the state folder below `folder`."""
    config = folder / "llmosd.toml"
    config.write_text(SETTINGS)
    agents = folder / "agents"
    agents.mkdir(exist_ok=True)
    (agents / "recorded.py").write_text(AGENTS)
    flags = ["--model", "simulated", "--agents", str(agents), "--config", str(config)]
    environment = {"LEDGER": str(ledger), "LLMOSD_DRAIN_SECONDS": "0.1"}
    return RunningDaemon(folder, *flags, environment=environment).wait_until_ready()


def record(folder: Path) -> Path:
    """Run a daemon below `folder` until it has a task at every stage; stop it and return its state folder."""
    daemon = launch(folder, folder / "ledger")
    with daemon.client() as client:
        for key in ("done", "failed", "killed"):
            program = {"done": "quick", "failed": "broken", "killed": "echo"}[key]
            task = client.submit(program, {"number": 41} if program == "quick" else None, detach=True, key=key)
            if key == "killed":
                client.kill(task.pid)
            with suppress(LlmosError):
                task.result(60)
        tasks = {name: client.submit(name, detach=True, key=name) for name in WAITING}
        eventually(lambda: all(_blocked(client, name) for name in WAITING), "all wait")
        client.send("counter", 1)
        client.send("counter", 2)
        eventually(lambda: _received(client, "counter") == 2, "the counter has received both")
        client.suspend(tasks["halted"].pid)
        client.nice(tasks["counter"].pid, 5)
        client.send("halted", "a message that waits")
        client.submit("story", {"tokens": TOKENS}, detach=True, key="story")
        eventually(lambda: _generated(client) >= 20, "a part of the story is generated")
        ended = {row.program for row in client.history() if row.ended}
        assert ended == {"quick", "broken", "echo"}, f"ended before the stop: {ended}"
        daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0, daemon.log
    return folder / "state"


def _rows(client: Client, program: str) -> list[ProcessInfo]:
    return [row for row in client.ps() if row.program == program]


def _blocked(client: Client, program: str) -> bool:
    return any(row.state == "blocked" for row in _rows(client, program))


def _received(client: Client, program: str) -> int:
    return sum(row.usage.messages_received for row in _rows(client, program))


def _generated(client: Client) -> int:
    return sum(one.generated_tokens for row in client.slots() for one in row.sequences)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = record(Path(folder))
        with tarfile.open(sys.argv[1], "w:xz") as archive:
            archive.add(state, "state")
    print(f"{sys.argv[1]}: {os.path.getsize(sys.argv[1])} bytes")


if __name__ == "__main__":
    main()
