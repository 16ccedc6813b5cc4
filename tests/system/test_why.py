"""`llmos why` against a real daemon: the paragraph at the width of the terminal, the facts as JSON, its errors."""

from __future__ import annotations

import json

AGENTS = """
from llmosd import Context, agent


@agent
async def holder(ctx: Context) -> None:
    async with ctx.lock("orders\\x1b[2J"):
        await ctx.spawn("waiting")
        await ctx.receive()


@agent
async def waiting(ctx: Context) -> None:
    async with ctx.lock("orders\\x1b[2J"):
        pass


@agent
async def failing(ctx: Context) -> None:
    raise RuntimeError("no luck")
"""


def test_a_paragraph_says_what_a_process_waits_for_and_who_holds_it(launch, eventually):
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("holder", detach=True)
        eventually(lambda: [row.waits_for for row in client.ps() if row.program == "waiting"], "the child waits")
        (child,) = (row.pid for row in client.ps() if row.program == "waiting")
        eventually(lambda: client.ps(start=child)[0].waits_for.startswith("lock"), "the child waits for the lock")
        out = daemon.llmos("why", str(child))
        assert out.returncode == 0
        assert max(map(len, out.stdout.splitlines())) <= 80
        text = " ".join(out.stdout.split())
        assert f"Process {child} (waiting) has been waiting" in text
        assert "for lock orders\\x1b[2J." in text
        assert f"The lock is held by process {task.pid} (holder). Process {task.pid} (holder) has been waiting" in text
        assert f"The wait ends when process {task.pid} releases it or ends." in text
        facts = json.loads(daemon.llmos("why", str(child), "--json").stdout)
        assert (facts["wait"]["kind"], facts["wait"]["holders"][0]["pid"]) == ("lock", task.pid)
        client.kill(task.pid)


def test_a_process_that_ended_names_the_command_that_shows_more(launch, eventually):
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("failing", detach=True)
        eventually(lambda: not client.ps(), "the task ends")
    text = " ".join(daemon.llmos("why", str(task.pid)).stdout.split())
    assert f"Process {task.pid} (failing) ended" in text
    assert f"`llmos crashes {task.pid}` shows more." in text
    unknown = daemon.llmos("why", "99999")
    assert (unknown.returncode, "UnknownProcess" in unknown.stderr) == (2, True)
