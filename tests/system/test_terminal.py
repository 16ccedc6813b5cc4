"""Watching and controlling processes from a terminal: the commands about messages, locks and trees, and `top`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from textual.widgets import DataTable, Static

from llmosd import Client
from llmosd.cli.top import NO_DAEMON, Top
from tests.support.daemon import RunningDaemon

AGENTS = """
from llmosd import Context, agent, tool

@tool
def double(number: int) -> int:
    "Twice the number."
    return 2 * number

@agent
async def parent(ctx: Context, children: int = 2) -> None:
    for _ in range(children):
        await ctx.spawn("sleeper")
    await ctx.sleep(3600)

@agent
async def sleeper(ctx: Context) -> None:
    async with ctx.lock("bed") if ctx.pid % 2 else ctx.lock("couch"):
        await ctx.sleep(3600)

@agent
async def server(ctx: Context) -> None:
    await ctx.shared("answers").set(0)
    while True:
        message = await ctx.receive(type="ask")
        await ctx.reply(message, {"twice": 2 * message.body["number"]})

@agent
async def crash(ctx: Context) -> None:
    ctx.log("about to fail")
    message = await ctx.receive()
    raise ValueError(f"cannot read {message.body}")
"""


@pytest.fixture
def daemon(launch: Callable[..., RunningDaemon]) -> RunningDaemon:
    return launch()


def lines(daemon: RunningDaemon, *command: str) -> list[str]:
    out = daemon.llmos(*command)
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()


def rows(daemon: RunningDaemon, *command: str) -> list[dict[str, object]]:
    answer: list[dict[str, object]] = json.loads(daemon.llmos(*command, "--json").stdout)
    return answer


def test_the_tree_has_children_under_their_parents(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        first, second = llmos.submit("parent"), llmos.submit("parent", {"children": 1})
        for command in (("tree",), ("ps", "--tree")):
            drawn = [
                line[line.index("parent" if "parent" in line else "sleeper") - 3 :]
                for line in lines(daemon, *command)[1:]
            ]
            assert [line.split()[0] + line.split()[1][:7] for line in drawn if "─" in line] == [
                "├─sleeper",
                "└─sleeper",
                "└─sleeper",
            ]
        only = lines(daemon, "tree", str(second.pid))
        assert (len(only), "parent" in only[1], "└─ sleeper" in only[2]) == (3, True, True)
        assert daemon.llmos("tree", "99999").returncode == 2
        first.cancel()


def test_ps_pages_by_limit_and_start(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        tasks = [llmos.submit("sleeper") for _ in range(5)]
        pids = [task.pid for task in tasks]
        out = daemon.llmos("ps", "--limit", "2")
        assert [int(line.split()[0]) for line in out.stdout.splitlines()[1:]] == pids[:2]
        assert f"--start {pids[1] + 1}" in out.stderr
        rest = rows(daemon, "ps", "--start", str(pids[2]))
        assert [row["pid"] for row in rest] == pids[2:]


def test_send_call_mailbox_and_dead_letters(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        task = llmos.submit("server", name="doubler")
        assert json.loads("".join(lines(daemon, "call", "doubler", '{"number": 21}', "--type", "ask"))) == {"twice": 42}
        assert lines(daemon, "send", "doubler", "plain text", "--type", "chat", "--priority", "5") == []
        assert lines(daemon, "send", str(task.pid), "[1, 2]") == []
        (chat, other) = rows(daemon, "mailbox", str(task.pid))
        assert (chat["type"], chat["priority"], other["type"], other["priority"]) == ("chat", 5, "", 0)
        assert "chat" in lines(daemon, "mailbox", str(task.pid))[1]
        assert [row["name"] for row in rows(daemon, "names")] == ["doubler"]
        assert rows(daemon, "regions")[0]["name"] == "answers"
        timed_out = daemon.llmos("call", "doubler", "1", "--timeout", "0.1")
        assert timed_out.returncode == 124
        task.cancel()
        assert {row["reason"] for row in rows(daemon, "deadletters")} == {"the recipient ended"}
        assert "the recipient ended" in lines(daemon, "deadletters")[1]
        unknown = daemon.llmos("send", "doubler", "x")
        assert (unknown.returncode, "UnknownName" in unknown.stderr) == (2, True)


def test_nice_suspend_and_kill_processes_and_threads(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        task = llmos.submit("sleeper")
        pid = str(task.pid)
        assert lines(daemon, "nice", pid, "7") == ["7"]
        assert lines(daemon, "nice", pid, "+5") == ["12"]
        assert lines(daemon, "nice", pid, "-3", "-r") == ["9"]
        assert lines(daemon, "nice", pid, "-3") == ["-3"]
        assert daemon.llmos("nice", pid, "21").returncode == 2
        assert lines(daemon, "suspend", f"{pid}:0") == []
        assert [row["state"] for row in rows(daemon, "threads", pid)] == ["suspended"]
        assert "suspended" in lines(daemon, "threads", pid)[1]
        assert lines(daemon, "resume", f"{pid}:0") == []
        assert daemon.llmos("kill", f"{pid}:0-1").returncode == 2
        assert lines(daemon, "kill", pid) == []


def test_locks_tools_and_crashes(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        tasks = [llmos.submit("sleeper") for _ in range(4)]
        held = {row["name"]: (row["holders"], row["waiters"]) for row in rows(daemon, "locks")}
        odd, even = ([task.pid for task in tasks if task.pid % 2 == rest] for rest in (1, 0))
        assert held == {"bed": (odd[:1], odd[1:]), "couch": (even[:1], even[1:])}
        assert "held" in lines(daemon, "locks")[1]
        assert [row["name"] for row in rows(daemon, "tools")] == ["double"]
        assert "Twice the number." in lines(daemon, "tools")[1]
        task = llmos.submit("crash")
        llmos.send(task.pid, "a riddle", type="riddle")
        with pytest.raises(Exception, match="cannot read a riddle"):
            task.result()
    assert "cannot read a riddle" in lines(daemon, "crashes")[1]
    report = "\n".join(lines(daemon, "crashes", str(task.pid)))
    for part in ("ValueError: cannot read a riddle", "Traceback", "riddle from", "about to fail", "1/0 messages"):
        assert part in report


def test_run_with_a_name_and_limits(daemon: RunningDaemon) -> None:
    out = daemon.llmos("run", "parent", "-a", "children=3", "--limit", "children=2", "--name", "mother")
    assert (out.returncode, "LimitExceeded" in out.stderr, "2 children" in out.stderr) == (1, True, True)
    assert "limits reached" in daemon.llmos("stats").stdout
    wrong = daemon.llmos("run", "parent", "--limit", "kittens=2")
    assert (wrong.returncode, "tokens" in wrong.stderr) == (2, True)


# ---- top


def cells(top: Top, name: str) -> list[str]:
    table = top.query_one(DataTable)
    return [str(cell) for cell in table.get_column(name)]


async def until(top: Top, condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
        await top.poll()
    raise AssertionError("the screen never showed the expected state")


async def test_top_shows_sorts_and_controls(daemon: RunningDaemon) -> None:
    with daemon.client() as llmos:
        tasks = [llmos.submit("sleeper") for _ in range(3)]
        pids = [str(task.pid) for task in tasks]
        top = Top(daemon.socket)
        async with top.run_test(size=(150, 30)) as pilot:
            await until(top, lambda: len(cells(top, "PID")) == 3)
            while top._sorted_by != "PID":
                await pilot.press(">")
            await until(top, lambda: cells(top, "PID") == pids)
            await pilot.press("r")
            await until(top, lambda: cells(top, "PID") == pids[::-1])
            await pilot.press("ctrl+home", "down")  # the cursor had stayed with its process
            await pilot.press("+", "+", "-")
            # A poll that was under way may show the state before the press once more.
            await until(top, lambda: cells(top, "PRI") == ["0", "1", "0"])
            await pilot.press("s")
            await until(top, lambda: cells(top, "STATE")[1] == "suspended")
            # The cursor stays with its process when another one comes before it.
            another = llmos.submit("sleeper")
            await until(top, lambda: len(cells(top, "PID")) == 4)
            await pilot.press("s")
            await until(top, lambda: cells(top, "STATE")[2] == "blocked")
            await pilot.press("k", "y")
            await until(top, lambda: len(cells(top, "PID")) == 3)
            assert cells(top, "PID") == [str(another.pid), pids[2], pids[0]]
            assert f"process {pids[1]} killed" in str(top.query_one("#notice", Static).render())
            assert "3 processes" in str(top.query_one("#summary", Static).render())
            await pilot.press("q")
        assert top.return_code == 0


async def test_top_of_an_empty_daemon_and_of_one_that_goes_away(daemon: RunningDaemon) -> None:
    top = Top(daemon.socket)
    async with top.run_test() as pilot:
        await pilot.pause()
        assert top.query_one(DataTable).row_count == 0
        await pilot.press("k", "s", "+")
        daemon.stop()
        await top.poll()
        await pilot.pause()
    assert top.return_code == NO_DAEMON
    gone = Top(daemon.socket)
    async with gone.run_test() as pilot:
        await pilot.pause()
    assert gone.return_code == NO_DAEMON


def test_top_without_the_terminal_library_names_the_extra(daemon: RunningDaemon) -> None:
    code = "import sys; sys.modules['textual'] = None; from llmosd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--socket", str(daemon.socket), "top"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert out.returncode == 1
    assert out.stdout == ""
    assert out.stderr.startswith("llmos: MissingExtra: `llmos top` needs textual: pip install 'llmosd[top]'")
    assert out.stderr.count("\n") == 1


def test_only_top_loads_the_terminal_library(daemon: RunningDaemon) -> None:
    code = "import sys; from llmosd.cli import command_line; print('textual' in sys.modules, 'rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
    with Client(daemon.socket) as llmos:
        assert llmos.ping(1) == 1
