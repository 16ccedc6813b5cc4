"""Durable agents on a real daemon that is killed: nothing they did is done twice, and nothing is lost."""

from __future__ import annotations

from contextlib import suppress

import apsw
import pytest

from llmosd import Client, ConnectionLost, NoDaemon

AGENTS = '''
import os
import time
from llmosd import Context, agent, tool

@tool
def die_once(path: str, call_id: str) -> str:
    """Kills the daemon the first time that it is called with this id."""
    mark = os.path.join(path, call_id)
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)
    return call_id

@tool
def append(path: str, line: str, call_id: str) -> None:
    """Appends each line once, whatever happens: the id tells whether it did."""
    with open(path, "a+") as lines:
        lines.seek(0)
        if f"{call_id} {line}\\n" not in lines.readlines():
            lines.write(f"{call_id} {line}\\n")

@agent(durable=True)
async def twenty(ctx: Context, path: str) -> list:
    """Twenty model calls, and a death after each."""
    texts = []
    for number in range(20):
        texts.append(await ctx.generate(f"number {number}", max_tokens=3))
        await ctx.tool("die_once", path=path)
    return texts

@agent(durable=True)
async def chance(ctx: Context, path: str) -> list:
    seen = []
    for number in range(3):
        seen += [await ctx.time(), await ctx.random(), await ctx.generate("x", max_tokens=5, temperature=1.0)]
        await ctx.tool("append", path=path + "/lines", line=repr(seen))
        await ctx.tool("die_once", path=path)
    return seen

@agent(durable=True)
async def sleeper(ctx: Context, path: str) -> float:
    begun = await ctx.time()
    await ctx.tool("append", path=path + "/lines", line="sleeps")
    await ctx.sleep(4.0)
    return await ctx.time() - begun

@agent(durable=True)
async def wayward(ctx: Context, path: str) -> None:
    await ctx.generate("then" if not os.path.exists(path + "/lines") else "now", max_tokens=1)
    await ctx.tool("append", path=path + "/lines", line="was here")
    await ctx.sleep(1e6)
'''


@pytest.fixture
def launch(start, folder):
    """Starts the daemon, again and again on the same state."""
    (folder / "agents").mkdir()
    (folder / "agents" / "some.py").write_text(AGENTS)

    def launch(**options):
        return start("--agents", str(folder / "agents"), **options)

    return launch


@pytest.fixture
def finish(launch, folder):
    """Sees a task to its end, over as many deaths of the daemon as it takes: its result, and the number of deaths."""

    def finish(task: str, daemon) -> tuple[object, int]:
        for deaths in range(100):
            try:
                with Client(daemon.socket) as client:
                    return client.attach(task).result(30), deaths
            except (NoDaemon, ConnectionLost):
                daemon.process.wait(10)
                daemon = launch(ready=False)
                with suppress(AssertionError):
                    daemon.wait_until_ready()
        raise AssertionError("the daemon dies without end")

    return finish


def submit(daemon, program, *arguments, **options) -> str:
    with daemon.client() as client:
        return client.submit(program, positional=list(map(str, arguments)), detach=True, **options).id


def rows(folder, query):
    db = apsw.Connection(str(folder / "state" / "journal.sqlite"))
    try:
        return list(db.execute(query))
    finally:
        db.close()


def generations(daemon) -> int:
    with daemon.client() as client:
        return client.stats().calls.get("Generate", 0)


def test_a_durable_agent_of_20_calls_killed_after_each_makes_20_model_calls_in_all(launch, folder, finish):
    marks = folder / "marks"
    marks.mkdir()
    daemon = launch()
    task = submit(daemon, "twenty", marks)
    result, deaths = finish(task, daemon)
    assert deaths == 20
    assert len(set(result)) == 20
    with Client(daemon.socket) as client:
        (row,) = client.history()
        assert (row.state, row.attempt) == ("done", 21)
        # The last life made none of them: all 20 were answered from the journal.
        assert client.stats().calls.get("Generate", 0) == 0
    assert rows(folder, "SELECT count(*) FROM calls") == [(0,)]
    assert rows(folder, "SELECT count(*) FROM processes") == [(0,)]
