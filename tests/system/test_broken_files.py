"""An agent file that is broken when the daemon restarts: its tasks wait, and go on when it is corrected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ipc.syscalls import Send
from tests.support.daemon import RunningDaemon, eventually

AGENTS = """
from llmosd import agent

@agent(durable=True)
async def long(ctx):
    first = await ctx.random()
    return [first, (await ctx.receive()).body]
"""


def test_a_task_of_a_broken_file_is_shown_with_its_reason_and_can_be_killed_or_go_on(
    launch: Callable[..., RunningDaemon], agents: Path
) -> None:
    daemon = launch()
    with daemon.client() as client:
        goes_on, killed = (client.submit("long", detach=True) for _ in range(2))
        eventually(lambda: all(row.waits_for == "message" for row in client.ps()), "both wait", 60)
    daemon.kill()
    (agents / "some.py").write_text(AGENTS + "def oops(:\n")  # an editor saved half a line
    daemon = launch()
    with daemon.client() as client:
        eventually(lambda: {row.state for row in client.history()} == {"waiting"}, "both wait for the file", 60)
        for command in (("ps", "--wide"), ("why", goes_on.id)):
            shown = " ".join(daemon.llmos(*command).stdout.split())
            assert goes_on.id in shown, shown
            assert "o program 'long'; " in shown, shown
            assert "some.py may define it, but cannot be" in shown, shown
        assert daemon.llmos("kill", killed.id).returncode == 0
        assert client.kill_task(killed.id) == "killed"
        assert {row.state for row in client.history()} == {"waiting", "killed"}
        (agents / "some.py").write_text(AGENTS)
        client.request(Send(goes_on.pid, "later"))  # waits for the process
        assert client.attach(goes_on.id).result(60)[1] == "later"
