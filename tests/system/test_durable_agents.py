"""Durable agents on a real daemon that is killed: no effect happens twice, and nothing is lost."""

from __future__ import annotations

import random
import time
from functools import partial

import apsw
import pytest

from llmosd import Client, ConnectionLost, NoDaemon

AGENTS = '''
import os
from llmosd import Context, agent, tool
from kernel.models.calls import ModelSubsystem

make = ModelSubsystem._generate

def counted(calls, process, call, runtime, *rest):
    """Writes a line for each model call that is really made, in any run of the daemon."""
    with open(os.environ["MODEL_CALLS"], "a") as lines:
        lines.write(f"{call.prompt}\\n")
    return make(calls, process, call, runtime, *rest)

if make.__name__ != "counted":
    ModelSubsystem._generate = counted

@tool
def die_once(path: str, call_id: str) -> None:
    """Kills the daemon the first time that it is called with this id."""
    mark = os.path.join(path, call_id)
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)

@tool
def append(path: str, line: str, call_id: str) -> str:
    """Appends its line once, whatever happens: the call id shows whether it already did."""
    with open(path, "a+") as lines:
        lines.seek(0)
        if f"{call_id} {line}\\n" not in lines.readlines():
            lines.write(f"{call_id} {line}\\n")
    return line

@agent(durable=True)
async def twenty(ctx: Context, path: str) -> list:
    texts = []
    for number in range(20):
        texts.append(await ctx.generate(f"number {number}", max_tokens=3))
        await ctx.tool("die_once", path=path)
    return texts

@agent(durable=True)
async def library(ctx: Context, path: str) -> list:
    """Receives messages until one of type "close", and writes down each."""
    await ctx.register("library")
    while True:
        message = await ctx.receive()
        if message.type == "close":
            await ctx.reply(message, await ctx.memory.get("count"))
            return [ctx.pid, await ctx.memory.keys()]
        await ctx.memory.set("count", await ctx.memory.get("count", 0) + 1)
        await ctx.memory.set(message.body, True)
        await ctx.tool("append", path=path, line=message.body)

@agent(durable=True)
async def author(ctx: Context, path: str, name: str, rounds: int) -> list:
    """Writes through a child, and sends the line that it wrote."""
    pids = []
    for number in range(rounds):
        pids.append(await ctx.spawn("page", {"path": path, "line": f"{name}-{number}"}))
        await ctx.send("library", await ctx.wait(pids[-1]))
    return [ctx.pid, *pids]

@agent(durable=True)
async def page(ctx: Context, path: str, line: str) -> str:
    await ctx.generate(line, max_tokens=2)
    await ctx.sleep(0.01 * await ctx.random())
    return await ctx.tool("append", path=path, line="page of " + line)

@agent(durable=True)
async def sleeper(ctx: Context) -> list:
    begun = await ctx.time()
    await ctx.memory.set("sleeps", True)
    await ctx.sleep(1.5)
    return [begun, await ctx.time()]
'''


@pytest.fixture
def model_calls(folder):
    """The prompts of all model calls that were made in all runs of the daemon."""
    return lambda: (folder / "model-calls").read_text().splitlines()


@pytest.fixture
def launch(launch, folder):
    """Starts daemons as elsewhere, with any number of attempts and a count of the model calls."""
    environment = {"MODEL_CALLS": str(folder / "model-calls")}
    return partial(launch, "[journal]\nattempts = 1000000\n", environment=environment)


def submit(daemon, program, **arguments) -> str:
    with daemon.client() as client:
        return client.submit(program, arguments, detach=True).id


def rows(folder, query):
    db = apsw.Connection(str(folder / "state" / "journal.sqlite"))
    try:
        return list(db.execute(query))
    finally:
        db.close()


def test_a_durable_agent_of_20_calls_killed_after_each_makes_20_model_calls_in_all(launch, folder, model_calls):
    (folder / "marks").mkdir()
    daemon = launch()
    task = submit(daemon, "twenty", path=str(folder / "marks"))
    deaths = 0
    while True:
        try:
            with Client(daemon.socket) as client:
                texts = client.attach(task).result(60)
                break
        except (NoDaemon, ConnectionLost):
            if daemon.process.poll() is not None:
                deaths += 1
                daemon = launch(ready=False)
            time.sleep(0.01)
    assert deaths == 20
    assert model_calls() == [f"number {number}" for number in range(20)]
    assert len(set(texts)) == 20
    with daemon.client() as client:
        (row,) = client.history()
        assert (row.state, row.attempt) == ("done", 21)
    assert rows(folder, "SELECT * FROM calls") == rows(folder, "SELECT * FROM processes") == []


def test_a_sleep_a_name_a_pid_and_a_suspension_are_what_they_were_after_kill_9(launch, eventually):
    daemon = launch()
    with daemon.client() as client:
        asleep = client.submit("sleeper", detach=True)
        held = client.submit("library", {"path": str(daemon.folder / "lines")}, detach=True)
        client.send(held.pid, "first")
        client.send("library", "second")
        eventually((daemon.folder / "lines").exists, "a message was read")
        client.suspend(held.pid)
        for number in range(20):
            client.send("library", f"more {number}")
        eventually(lambda: client.stats().calls.get("Sleep"), "it sleeps")
    daemon.kill()
    daemon = launch()
    with daemon.client() as client:
        client.send("library", "last", wait=True)
        states = {row.pid: (row.program, row.state) for row in client.ps()}
        assert states[held.pid] == ("library", "suspended")
        assert client.pid > held.pid
        assert client.attach(held.id).pid == held.pid
        client.resume(held.pid)
        assert client.call("library", None, 30, type="close") == 23
        pid, keys = client.attach(held.id).result(60)
        assert pid == held.pid
        assert keys == ["count", "first", "second", *(f"more {number}" for number in range(20)), "last"]
        begun, ended = client.attach(asleep.id).result(60)
        assert ended - begun > 1.4  # timers may strike a little early
        assert client.attach(asleep.id).pid in (0, asleep.pid)
    assert [line.split(" ", 1)[1] for line in (daemon.folder / "lines").read_text().splitlines()] == keys[1:]


@pytest.mark.soak
def test_what_durable_agents_did_they_did_once_whenever_the_daemon_is_killed(launch, folder, trial, model_calls):
    chance = random.Random(20261124)
    path, authors, rounds = folder / "lines", 4, trial(short=10, long=300)
    daemon = launch()
    with daemon.client() as client:
        library = client.submit("library", {"path": str(path)}, detach=True)
        tasks = [
            client.submit("author", {"path": str(path), "name": f"author{n}", "rounds": rounds}, detach=True)
            for n in range(authors)
        ]
    for _ in range(trial(short=4, long=300)):
        time.sleep(chance.random() * 0.15)  # any instant will do
        daemon.kill()
        daemon = launch()
    with daemon.client() as client:
        pids = [client.attach(task.id).result(60) for task in tasks]
        assert client.call("library", None, 60, type="close") == authors * rounds
        own, keys = client.attach(library.id).result(60)
    assert [own, *(row[0] for row in pids)] == [library.pid, *(task.pid for task in tasks)]
    everybody = [own, *(pid for row in pids for pid in row)]
    assert len(set(everybody)) == len(everybody)
    expected = {f"page of author{n}-{number}" for n in range(authors) for number in range(rounds)}
    assert set(keys) == {"count", *expected}
    for n in range(authors):
        mine = [key for key in keys if key.startswith(f"page of author{n}-")]
        assert mine == [f"page of author{n}-{number}" for number in range(rounds)]
    written = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert sorted(written) == sorted([*expected, *expected])  # once by its author, once by the library
    assert rows(folder, "SELECT * FROM calls") == rows(folder, "SELECT * FROM messages") == []
