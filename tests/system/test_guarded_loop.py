"""Agents that would stop a real daemon for everybody, or leave something behind: the daemon goes on, and cleans up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from ipc.errors import AgentFailed, BurstExceeded, Killed
from llmosd import Client
from tests.support.daemon import RunningDaemon, eventually

AGENTS = '''
import argparse
import asyncio
import signal
import socket
import subprocess
import time

import _signal

from llmosd import Context, agent, tool


@agent
async def fine(ctx: Context) -> str:
    await ctx.sleep(0)
    return "fine"


@agent
async def cancels_everything(ctx: Context) -> int:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.sleep(0.1)
    return len(others)


class Quits(asyncio.Protocol):
    def __init__(self, where: str) -> None:
        self.where = where

    def connection_made(self, transport) -> None:
        if self.where == "connection_made":
            raise SystemExit(3)

    def data_received(self, data: bytes) -> None:
        if self.where == "data_received":
            argparse.ArgumentParser().parse_args(["--no-such-option"])

    def connection_lost(self, error) -> None:
        if self.where == "connection_lost":
            raise KeyboardInterrupt


def factory(where: str):
    if where == "factory":
        raise SystemExit(4)
    return Quits(where)


@agent
async def quits(ctx: Context, where: str) -> None:
    loop = asyncio.get_running_loop()
    if where == "call_soon":
        loop.call_soon(exit, 1)
    elif where == "call_later":
        loop.call_later(0.01, exit, 1)
    elif where == "done_callback":
        ctx.start_thread(asyncio.sleep(0)).add_done_callback(lambda _: exit(1))
    elif where == "future":
        future = loop.create_future()
        future.add_done_callback(lambda _: exit(1))
        future.set_result(None)
    elif where == "add_reader":
        ours, theirs = socket.socketpair()
        loop.add_reader(ours, exit, 1)
        theirs.send(b"x")
    elif where == "call_soon_threadsafe":
        await asyncio.to_thread(loop.call_soon_threadsafe, exit, 1)
    elif where == "task_of_a_callback":
        async def work() -> None:
            raise SystemExit(5)
        loop.call_soon(lambda: asyncio.ensure_future(work()))
    elif where == "start_server":
        async def serve(reader, writer) -> None:
            argparse.ArgumentParser().parse_args(["--no-such-option"])
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        await asyncio.open_connection(*server.sockets[0].getsockname())
    elif where == "exception_handler":
        loop.set_exception_handler(lambda loop, context: exit(1))
        loop.call_soon(lambda: 1 / 0)
    else:
        server = await loop.create_server(lambda: factory(where), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        await ctx.sleep(0.05)
        writer.close()
    await ctx.sleep(60)


class Slow(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        while True:
            pass


class Hog:
    def __del__(self) -> None:
        while True:
            pass


@agent
async def holds(ctx: Context, where: str) -> str:
    loop = asyncio.get_running_loop()

    def forever(*_: object) -> None:
        while True:
            pass

    def deaf(*_: object) -> None:
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    if where == "call_soon":
        loop.call_soon(forever)
    elif where == "sleeping":
        loop.call_soon(time.sleep, 600)
    elif where == "done_callback":
        ctx.start_thread(asyncio.sleep(0)).add_done_callback(forever)
    elif where == "del":
        hog = Hog()
        del hog
    elif where == "deaf":
        loop.call_soon(deaf)
        await ctx.sleep(60)
    elif where == "protocol":
        server = await loop.create_server(Slow, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        await reader.read()
    elif where == "print":
        while True:
            print("x")
    await ctx.sleep(0.05)
    return "went on"


@agent
async def harness(ctx: Context) -> str:
    """The time limit of HumanEval."""
    def handler(number, frame) -> None:
        raise TimeoutError("Timed out!")

    signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.signal(signal.SIGALRM, handler)
    outcome = "in time"
    try:
        while True:
            pass
    except TimeoutError:
        outcome = "timed out"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return outcome


@agent
async def forgets_alarm(ctx: Context) -> None:
    signal.signal(signal.SIGALRM, lambda *_: exit(1))
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    await ctx.sleep(0.6)


@agent
async def spin(ctx: Context) -> None:
    while True:
        pass


@agent
async def blocks_signals(ctx: Context) -> None:
    _signal.pthread_sigmask(0, set(range(1, 65)))
    while True:
        pass


@agent
async def replaces_handlers(ctx: Context) -> None:
    """By the functions behind those of the module `signal`."""
    for number in (signal.SIGALRM, *range(int(signal.SIGRTMIN), int(signal.SIGRTMAX))):
        _signal.signal(int(number), lambda *_: None)
    _signal.setitimer(0, 0)


@agent
async def ignores_term(ctx: Context) -> None:
    _signal.signal(15, 1)


@agent
async def serves(ctx: Context, port: int, fails: bool = True) -> int:
    async def handler(reader, writer) -> None:
        await reader.read()

    server = await asyncio.start_server(handler, "127.0.0.1", port, reuse_port=False)
    port = server.sockets[0].getsockname()[1]
    await asyncio.open_connection("127.0.0.1", port)
    await ctx.sleep(0.01)
    await ctx.emit(port)
    if fails:
        raise RuntimeError("crashed")
    return port


@tool
def sleeper() -> int:
    child = subprocess.Popen(["sleep", "600"])
    return child.pid


@tool
def waiting() -> None:
    subprocess.run(["sleep", "600"])


@agent
async def starts(ctx: Context, how: str) -> None:
    if how == "exec":
        pid = (await asyncio.create_subprocess_exec("sleep", "600")).pid
    elif how == "shell":
        pid = (await asyncio.create_subprocess_shell("sleep 600; echo")).pid
    elif how == "stubborn":
        process = await asyncio.create_subprocess_shell(
            "trap '' TERM; echo ready; while true; do sleep 1; done", stdout=subprocess.PIPE
        )
        await process.stdout.readline()
        pid = process.pid
    elif how == "popen":
        pid = subprocess.Popen(["sleep", "600"]).pid
    elif how == "to_thread":
        pid = (await asyncio.to_thread(subprocess.Popen, ["sleep", "600"])).pid
    elif how == "tool":
        pid = await ctx.tool("sleeper")
    await ctx.emit(pid)
    await ctx.sleep(600)


@agent
async def calls_from_thread(ctx: Context) -> list:
    def work() -> list:
        refused = []
        for call in (lambda: ctx.log("no"), lambda: asyncio.run(ctx.sleep(0)), lambda: asyncio.run(ctx.receive())):
            try:
                call()
            except Exception as error:
                refused.append(f"{type(error).__name__}: {error}")
        ctx.from_thread(ctx.send, ctx.pid, "hello")
        message = ctx.from_thread(ctx.receive, timeout=60.0)
        return [message.body, *refused]

    return await asyncio.to_thread(work)
'''


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("loop")
    agents = folder / "agents"
    agents.mkdir()
    (agents / "loop_agents.py").write_text(AGENTS)
    settings = folder / "llmosd.toml"
    settings.write_text("[scheduling]\nburst = 0.3\n")
    flags = ("--model", "simulated", "--config", str(settings), "--agents", str(agents), "--log-format", "json")
    daemon = RunningDaemon(folder, *flags)
    try:
        yield daemon.wait_until_ready()
    finally:
        daemon.stop()


@pytest.fixture
def llmos(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client
        assert client.run("fine") == "fine"


def events(daemon: RunningDaemon) -> list[dict[str, object]]:
    return [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]


def test_an_agent_sees_and_cancels_only_its_own_tasks(llmos: Client) -> None:
    assert llmos.run("cancels_everything") == 0


@pytest.mark.parametrize(
    "where",
    [
        "call_soon",
        "call_later",
        "done_callback",
        "future",
        "add_reader",
        "call_soon_threadsafe",
        "task_of_a_callback",
        "start_server",
        "exception_handler",
        "factory",
        "connection_made",
        "data_received",
        "connection_lost",
    ],
)
def test_an_exit_in_a_callback_ends_the_process_and_not_the_daemon(llmos: Client, where: str) -> None:
    with pytest.raises(AgentFailed, match=r"SystemExit|KeyboardInterrupt"):
        llmos.run("quits", {"where": where})


@pytest.mark.parametrize("where", ["call_soon", "sleeping", "done_callback", "del"])
def test_a_callback_that_holds_the_loop_is_interrupted(llmos: Client, where: str) -> None:
    assert llmos.run("holds", {"where": where}) == "went on"


def test_a_protocol_that_holds_the_loop_is_interrupted(llmos: Client) -> None:
    assert llmos.run("holds", {"where": "protocol"}) == "went on"


def test_a_callback_that_catches_everything_is_ended_with_its_process(llmos: Client) -> None:
    with pytest.raises(Killed, match="in a callback"):
        llmos.run("holds", {"where": "deaf"})


def test_an_agent_that_does_nothing_but_print_is_interrupted(llmos: Client) -> None:
    with pytest.raises(BurstExceeded):
        llmos.run("holds", {"where": "print"})


def test_an_agent_that_uses_an_alarm_does_not_disable_the_watchdog(llmos: Client) -> None:
    assert llmos.run("harness") == "timed out"
    with pytest.raises(BurstExceeded):
        llmos.run("spin")


def test_the_watchdog_restores_its_handlers(daemon: RunningDaemon, llmos: Client) -> None:
    llmos.run("replaces_handlers")
    eventually(lambda: daemon.log.count("was replaced; it is restored") >= 2, "it restores two handlers", timeout=60.0)
    with pytest.raises(BurstExceeded):
        llmos.run("spin")


def test_an_alarm_that_an_agent_has_set_rings_in_no_other_code(daemon: RunningDaemon, llmos: Client) -> None:
    assert llmos.run("forgets_alarm") is None
    assert any("awaited with an alarm set" in str(line["event"]) for line in events(daemon))


def test_the_watchdog_works_while_an_agent_blocks_all_signals(daemon: RunningDaemon, llmos: Client) -> None:
    with pytest.raises(BurstExceeded):
        llmos.run("blocks_signals")
    eventually(lambda: "was blocked; it is unblocked" in daemon.log, "the log names what was blocked", timeout=60.0)


@pytest.mark.parametrize("how", ["exec", "shell", "popen", "to_thread", "tool", "stubborn"])
def test_a_subprocess_ends_with_the_agent(llmos: Client, how: str) -> None:
    task = llmos.submit("starts", {"how": how})
    pid = next(task.events()).value
    child = psutil.Process(pid)
    below = child.children()
    assert child.is_running()
    llmos.kill(task.pid)
    for ended in (child, *below):
        eventually(partial(has_ended, ended), f"{ended} ends", timeout=60.0)


def test_a_server_is_closed_when_its_agent_has_failed(llmos: Client) -> None:
    task = llmos.submit("serves", {"port": 0})
    port = next(task.events()).value
    with pytest.raises(AgentFailed):
        task.result()
    assert llmos.run("serves", {"port": port, "fails": False}) == port


def test_context_calls_of_another_thread_are_refused_or_made_by_from_thread(llmos: Client) -> None:
    body, *refused = llmos.run("calls_from_thread")
    assert body == "hello"
    assert len(refused) == 3
    assert all(text.startswith("InvalidCall") and "ctx.from_thread" in text for text in refused), refused


def test_the_daemon_stops_on_sigterm_though_an_agent_has_replaced_the_handler(daemon: RunningDaemon) -> None:
    """The last test: it stops the daemon."""
    with daemon.client() as llmos:
        llmos.run("ignores_term")
        left = [
            next(llmos.submit("starts", {"how": how}).events()).value for how in ("exec", "shell", "popen", "stubborn")
        ]
    eventually(lambda: is_restored(daemon, "SIGTERM"), "the watchdog restores the handler", timeout=60.0)
    assert daemon.kill(15) == 0
    assert not [pid for pid in left if psutil.pid_exists(pid) and not has_ended(psutil.Process(pid))]


def is_restored(daemon: RunningDaemon, name: str) -> bool:
    """Whether the log says that the handler of this signal is back. Other tests replace other handlers."""
    return any(line["signal"] == name for line in events(daemon) if "it is restored" in line["event"])


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
