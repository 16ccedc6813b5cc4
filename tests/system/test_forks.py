"""Forked children of agents and tools: they may exec or run `multiprocessing`, and none becomes a second daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llmosd.daemon.forked_child import EXIT_CODE
from tests.support.daemon import RunningDaemon, eventually

AGENTS = """
import asyncio, multiprocessing, os, pty, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from llmosd import agent, tool

def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@agent
async def forks(ctx, what: str):
    pid = os.fork()
    if pid:
        return pid if what == "stays" else await asyncio.to_thread(exit_code, pid)
    match what:
        case "calls the kernel":
            await ctx.sleep(0.1)
        case "logs":
            ctx.log("a line of the child")
        case "waits":
            await asyncio.sleep(0.1)
        case "raises":
            raise ValueError("of the child")
        case "exits":
            sys.exit(3)
        case "executes":
            os.execv("/bin/sh", ["sh", "-c", "exit 4"])
        case "runs a loop":
            async def main():
                await asyncio.sleep(0.01)
                return 5
            os._exit(asyncio.run(main()))
        case "prints":
            print("printed by the child")
            os._exit(6)
        case "counts files":
            names = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) > 2
                     and os.path.exists(f"/proc/self/fd/{name}")]
            os._exit(sum("/state/" in name or name.endswith(".lock") or "socket:" in name for name in names))
        case "has handlers":
            numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
            os._exit(sum(signal.getsignal(number) is not signal.SIG_DFL for number in numbers))
        case "stays":
            while True:
                time.sleep(60)

@agent
async def forks_in_callback(ctx, where: str):
    loop = asyncio.get_running_loop()
    forked = loop.create_future()
    def fork():
        pid = os.fork()
        if pid:
            forked.set_result(pid)
    match where:
        case "call_soon":
            loop.call_soon(fork)
        case "call_later":
            loop.call_later(0.01, fork)
        case "add_reader":
            reading, writing = os.pipe()
            os.write(writing, b"x")
            loop.add_reader(reading, lambda: (loop.remove_reader(reading), fork()))
        case "a worker thread":
            return exit_code(await asyncio.to_thread(os.fork))
        case "a tool":
            return exit_code(await ctx.tool("fork"))
    return await asyncio.to_thread(exit_code, await forked)

@tool
def fork():
    return os.fork()

@tool
def pool(context: str):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(context)) as pool:
        return list(pool.map(abs, [-1, -2]))

@agent
async def pools(ctx, context: str, in_tool: bool):
    if in_tool:
        return await ctx.tool("pool", context=context)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(context)) as pool:
        return [await asyncio.get_running_loop().run_in_executor(pool, abs, number) for number in (-1, -2)]

@agent
async def terminates_pool(ctx):
    pool = multiprocessing.get_context("fork").Pool(1)
    results = pool.map(abs, [-1, -2])
    pool.terminate()
    pool.join()
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        process.start()
        process.terminate()  # often before the child has run at all
        process.join()
    return results

@agent
async def starts_programs(ctx):
    code = subprocess.run(["/bin/sh", "-c", "exit 2"], preexec_fn=os.setsid).returncode
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 3", preexec_fn=os.setsid)
    spawned = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], os.environ)
    forked, terminal = pty.fork()
    if not forked:
        os.execv("/bin/sh", ["sh", "-c", "read line; exit 5"])
    os.write(terminal, b"\\n")
    return [code, await process.wait(), exit_code(spawned), exit_code(forked)]

@agent
async def leaves_worker(ctx):
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    return worker.pid

@agent
async def patient(ctx):
    await ctx.sleep(0.2)
    return "done"
"""

SETTINGS = "[scheduling]\nburst = 0\n"  # these agents block the loop


@pytest.fixture
def daemon(launch: Callable[..., RunningDaemon]) -> RunningDaemon:
    return launch(SETTINGS)


def test_a_forked_child_ends_itself_where_it_would_go_on_as_the_daemon(daemon: RunningDaemon):
    with daemon.client() as client:
        bystander = client.submit("patient")
        for what in ("returns", "calls the kernel", "logs", "waits", "raises"):
            assert client.submit("forks", {"what": what}).result(60) == EXIT_CODE, what
        for where in ("call_soon", "call_later", "add_reader", "a worker thread", "a tool"):
            assert client.submit("forks_in_callback", {"where": where}).result(60) == EXIT_CODE, where
        assert bystander.result(60) == "done"
        assert len(client.history()) == 11
    assert daemon.log.count("would have gone on as a second daemon") == 10


def test_a_child_that_a_file_forks_while_it_is_loaded_ends_itself(daemon: RunningDaemon, folder: Path):
    file = folder / "forks.py"
    file.write_text(
        "import os\nfrom llmosd import agent\nchild = os.fork()\n"
        "@agent\nasync def waits(ctx):\n    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    )
    with daemon.client() as client:
        assert client.submit(str(file)).result(60) == EXIT_CODE
    assert daemon.log.count("would have gone on as a second daemon") == 1


def test_a_forked_child_works_like_a_program_and_has_nothing_of_the_daemon(daemon: RunningDaemon):
    with daemon.client() as client:
        for what, code in (("exits", 3), ("executes", 4), ("runs a loop", 5), ("prints", 6)):
            assert client.submit("forks", {"what": what}).result(60) == code
        assert client.submit("starts_programs").result(60) == [2, 3, 4, 5]
        assert client.submit("forks", {"what": "counts files"}).result(60) == 0
        assert client.submit("forks", {"what": "has handlers"}).result(60) == 0
    assert "printed by the child" in daemon.log
    assert "second daemon" not in daemon.log


def test_pools_of_processes_work_in_agents_and_in_tools_and_do_not_stop_the_daemon(daemon: RunningDaemon):
    with daemon.client() as client:
        for context in ("fork", "spawn", "forkserver"):
            for in_tool in (False, True):
                assert client.submit("pools", {"context": context, "in_tool": in_tool}).result(60) == [1, 2]
        assert client.submit("terminates_pool").result(60) == [1, 2]
        assert client.submit("patient").result(60) == "done"
    assert "stopping" not in daemon.log


def test_forked_children_end_with_a_killed_daemon_and_do_not_hinder_the_next_one(
    daemon: RunningDaemon, launch: Callable[..., RunningDaemon]
):
    with daemon.client() as client:
        child = client.submit("forks", {"what": "stays"}).result(60)
    daemon.kill()
    with launch(SETTINGS).client() as client:
        assert client.submit("patient").result(60) == "done"
    eventually(lambda: _is_gone(child), "the forked child ends", 60)


def test_worker_processes_end_with_an_orderly_stop(daemon: RunningDaemon):
    with daemon.client() as client:
        worker = client.submit("leaves_worker").result(60)
        assert not _is_gone(worker)
        client.shutdown()
    daemon.process.wait(60)
    eventually(lambda: _is_gone(worker), "the worker ends", 60)


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return not os.path.exists(f"/proc/{pid}")
