"""An agent spawns the agents of its own file by name or by the function itself, and clients get changed files."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import AgentFailed, InvalidCall, LlmosError, ReplayDiverged, TooManyRestarts, UnknownProgram
from ipc.syscalls import Send, Spawn
from tests.support.durable_world import World, everywhere, nothing
from tests.support.program_files import HEADER, agent_file, write
from tests.support.system import System

WORKER = """
@agent
async def worker(ctx: Context, n: int = 1):
    return [{mark!r}, n]
"""


async def run(system: System, program: str, **args: Any) -> Any:
    """Start a program as a client does, and return its result."""
    return await system.result(await system.call(Spawn(program, args)))


def family(path: Path, how: str, mark: str = "own", *, before: str = "") -> Path:
    """A file with the agents `parent` and `worker`; the parent returns the result of the child that `how` names."""
    text = f"{HEADER}{before}\n{WORKER.format(mark=mark)}\n"
    text += f"@agent\nasync def parent(ctx: Context):\n    return await ctx.wait(await ctx.spawn({how}, dict(n=2)))\n"
    return write(path, text)


@pytest.mark.parametrize("how", ["'worker'", "worker"])
async def test_an_agent_spawns_an_agent_of_its_own_file_that_was_run_by_path(
    system: System, tmp_path: Path, how: str
) -> None:
    path = family(tmp_path / "elsewhere" / "a.py", how)
    assert await run(system, f"{path}:parent") == ["own", 2]


async def test_the_own_file_goes_over_a_program_of_that_name_in_another_folder(system: System, tmp_path: Path) -> None:
    write(tmp_path / "agents" / "z.py", HEADER + WORKER.format(mark="other"))
    path = family(tmp_path / "elsewhere" / "a.py", "'worker'")
    assert await run(system, "worker", n=3) == ["other", 3]
    assert await run(system, f"{path}:parent") == ["own", 2]


@pytest.mark.parametrize(
    ("before", "how"),
    [
        ("import helper", "helper.worker"),
        ("from helper import worker as far", "far"),
        ("", "'helper:worker'"),
        ("from pkg.sub import worker as far", "far"),
        ("", "'pkg.sub:worker'"),
        ("", "'a-b.py:worker'.join([__file__[:-4], ''])"),
    ],
)
async def test_an_agent_spawns_an_agent_of_a_neighbour(system: System, tmp_path: Path, before: str, how: str) -> None:
    folder = tmp_path / "elsewhere"
    for file in ("helper.py", "pkg/sub.py", "a-b.py"):
        write(folder / file, HEADER + WORKER.format(mark="neighbour"))
    write(folder / "pkg" / "__init__.py", "")
    path = family(folder / "a.py", how, before=before)
    for _ in range(2):
        assert await run(system, f"{path}:parent") == ["neighbour", 2]


async def test_an_agent_supervises_agents_of_its_own_file(system: System, tmp_path: Path) -> None:
    text = f"""{HEADER}from llmosd import Child
{WORKER.format(mark="own")}
@agent
async def parent(ctx: Context):
    once = dict(restart="temporary")
    by_name, by_function = Child("worker", dict(n=3), **once), Child(worker, dict(n=4), **once)
    return [end.value for end in await ctx.supervise([by_name, by_function])]

@agent
async def persistent(ctx: Context):
    await ctx.supervise(["worker", worker], max_restarts=0)
"""
    path = write(tmp_path / "elsewhere" / "a.py", text)
    assert await run(system, f"{path}:parent") == [["own", 3], ["own", 4]]
    with pytest.raises(TooManyRestarts, match="worker ended again"):
        await run(system, f"{path}:persistent")


@pytest.mark.parametrize(
    ("how", "error", "why"),
    [
        ("print", InvalidCall, "marked with @agent"),
        ("3", InvalidCall, "marked with @agent"),
        ("nested()", UnknownProgram, "agents in module a: worker, parent"),
        ("'helper:nobody'", UnknownProgram, "agents in module helper: none"),
        ("'broken:worker'", AgentFailed, "ZeroDivisionError"),
        ("'json:worker'", UnknownProgram, "agents in module json: none"),
        ("'nothing.at_all:worker'", UnknownProgram, "there is no module 'nothing.at_all'"),
        ("':worker'", UnknownProgram, "there is no module ''"),
        ("'somebody'", UnknownProgram, "no program 'somebody'"),
    ],
)
async def test_a_program_that_cannot_be_spawned_is_refused_with_the_reason(
    system: System, tmp_path: Path, how: str, error: type[LlmosError], why: str
) -> None:
    write(tmp_path / "elsewhere" / "helper.py", "")
    write(tmp_path / "elsewhere" / "broken.py", "1 / 0")
    before = f"""
def nested():
    @agent
    async def inner(ctx): ...
    return inner

@agent
async def careful(ctx: Context):
    try:
        await ctx.spawn({how})
    except Exception as error:
        return [type(error).__name__, str(error)]
"""
    path = family(tmp_path / "elsewhere" / "a.py", how, before=before)
    kind, text = await run(system, f"{path}:careful")
    assert kind == error.__name__
    assert why.replace("worker, parent", "careful, worker, parent") in text


async def test_a_client_gets_a_changed_file_and_a_changed_helper_and_a_running_agent_its_old_file(
    system: System, tmp_path: Path
) -> None:
    folder = tmp_path / "agents"
    write(folder / "_helper.py", "N = 1\n")
    text = HEADER + "import _helper\n@agent\nasync def worker(ctx):\n    return _helper.N\n"
    text += "@agent\nasync def parent(ctx):\n    message = await ctx.receive()\n"
    text += (
        "    return [_helper.N, await ctx.wait(await ctx.spawn(worker)), await ctx.wait(await ctx.spawn('worker'))]\n"
    )
    write(folder / "a.py", text)
    old = await system.call(Spawn("parent"))
    assert await run(system, "worker") == 1
    write(folder / "_helper.py", "N = 2\n", when=2)
    assert await run(system, "worker") == 2
    await system.call(Send(old, None))
    assert await system.result(old) == [1, 1, 1]


async def test_an_ended_process_does_not_retain_the_version_of_the_file_that_it_ran(
    system: System, tmp_path: Path
) -> None:
    path = tmp_path / "a.py"
    text = HEADER + "import msgspec\nclass Note(msgspec.Struct, frozen=True):\n    pass\n"
    text += "@agent(accepts=[Note])\nasync def a(ctx):\n    return 1\n"
    write(path, text)
    process = system.kernel.lifecycle.table.find(await system.call(Spawn(str(path))))
    assert process.code is not None
    assert process.accepts is not None
    assert await system.result(process) == 1
    assert (process.code, process.accepts, process.threads) == (None, None, ())


async def test_clients_that_ask_for_one_program_at_once_share_a_look_at_the_disk(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_file(tmp_path / "agents" / "a.py", "a", "return 1")
    await asyncio.to_thread(system.programs.refresh)
    loads = []
    look = system.programs.look
    monkeypatch.setattr(system.programs, "look", lambda name, *rest: (loads.append(name), look(name, *rest))[1])
    lifecycle = system.kernel.lifecycle
    # Tasks, not threads: the dispatcher may need several turns to step 50 threads, and the look begins in between.
    gone, *others = [asyncio.Task(lifecycle.load(system.client, "a")) for _ in range(50)]
    await asyncio.sleep(0)
    gone.cancel()
    found = await asyncio.gather(*others)
    assert ({program.name for program in found}, loads) == ({"a"}, ["a"])
    with pytest.raises(UnknownProgram):
        await asyncio.gather(*(lifecycle.load(system.client, "nobody") for _ in range(3)))
    assert (lifecycle._loading, dict(lifecycle._loads), len(loads)) == ({}, {}, 2)


async def test_a_client_never_shares_a_look_at_the_disk_that_has_begun_and_a_disk_that_hangs_holds_one_thread(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_file(tmp_path / "agents" / "a.py", "a", "return 1")
    loads: list[str] = []
    look, disk = system.programs.look, threading.Event()

    def hang(name: str, *rest: Any) -> Any:
        loads.append(name)
        disk.wait(60)
        return look(name, *rest)

    monkeypatch.setattr(system.programs, "look", hang)
    lifecycle = system.kernel.lifecycle
    first = system.thread(lifecycle.load(system.client, "a"))
    while not loads:
        await asyncio.sleep(0)  # not `until`: the virtual clock stands still while a worker thread runs
    later = [system.thread(lifecycle.load(system.client, "a")) for _ in range(3)]
    await system.turns()
    assert loads == ["a"]
    disk.set()
    await asyncio.gather(first, *later)
    assert loads == ["a", "a"]


DURABLE = """
import helper

@agent(durable=True)
async def worker(ctx: Context, n: int):
    await ctx.sleep(0.01)
    return [helper.N, n]

@agent(durable=True)
async def parent(ctx: Context):
    pids = [await ctx.spawn("worker", {"n": 1}), await ctx.spawn(worker, {"n": 2})]
    pids.append(await ctx.spawn(helper.far, {"n": 3}))
    return [await ctx.wait(pid) for pid in pids]

@agent(durable=True)
async def patient(ctx: Context):
    await ctx.memory.set(helper.N, True)
    await ctx.receive()
"""
FAR = "@agent(durable=True)\nasync def far(ctx: Context, n: int):\n    return n\n"


def durable_family(folder: Path) -> Path:
    write(folder / "helper.py", f"{HEADER}N = 'one'\n{FAR}")
    return write(folder / "a.py", HEADER + DURABLE)


@pytest.mark.real_time
async def test_a_durable_agent_spawns_the_same_agents_of_its_files_after_every_restart(
    world: World, tmp_path: Path
) -> None:
    path = durable_family(tmp_path / "elsewhere")
    write(tmp_path / "agents" / "z.py", HEADER + WORKER.format(mark="other"))
    first = await everywhere(world, f"{path}:parent", nothing)
    assert first == [["one", 1], ["one", 2], 3]


@pytest.mark.real_time
async def test_a_changed_helper_is_a_changed_program_of_a_durable_agent(world: World, tmp_path: Path) -> None:
    path = durable_family(tmp_path / "elsewhere")
    async with world.life(orderly=True) as life:
        task = await life.submit(f"{path}:patient")
        await life.until(lambda: life.calls.get("Receive", 0) == 1)
        await life.system.tasks.flush()
    write(path.parent / "helper.py", f"{HEADER}N = 'two'\n{FAR}", when=2)
    async with world.life(life.folder) as life:
        with pytest.raises(ReplayDiverged, match="its code has changed since the process started") as diverged:
            await life.result(task)
    assert diverged.value.data["version_then"] != diverged.value.data["version_now"]
