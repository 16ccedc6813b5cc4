"""Durable agents in a kernel with a journal, which is copied after each commit: every copy is a death of the daemon.

A kernel that starts on such a copy has to bring the agents to where they were, with what they did done once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipc.abi import TOOL_ATTRIBUTE, AgentMark, ToolMark
from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.messages import Failed, Result
from ipc.syscalls import Attach, Submit
from kernel.journal.journal import Journal
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store
from kernel.kernel import Kernel
from kernel.programs import Program
from kernel.slots.model import ModelSpec
from kernel.tools.tool import Tool
from llmosd.context import Context
from tests.unit.conftest import FakeMachine, InLoopLauncher, System

pytestmark = pytest.mark.real_time

Agent = Callable[..., Any]


class Life:
    """One life of a kernel, on the journal in `folder`."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder

    async def submit(self, program: str, /, **args: Any) -> str:
        return (await self.system.call(Submit(program, args, detach=True))).id

    async def result(self, task: str) -> Any:
        """What came of a task. Raises its error."""
        recorder = self.system.recorder()
        answer = self.system.kernel.gate.enter(self.system.client, Attach(task), recorder.stream)
        if asyncio.iscoroutine(answer):
            await self.system.thread(answer)
        while not recorder.ended:
            await asyncio.sleep(0.001)
        event = recorder.events[-1]
        if isinstance(event, Failed):
            raise from_wire(event.error)
        assert isinstance(event, Result)
        return reveal(event.value)

    async def run(self, program: str, /, **args: Any) -> Any:
        return await self.result(await self.submit(program, **args))

    async def rows(self, query: str) -> list[Any]:
        assert self.system.kernel._submitted is not None
        found: list[Any] = await self.system.kernel._submitted._journal.read(
            lambda store: list(store.db.execute(query))
        )
        return found

    @property
    def calls(self) -> dict[str, int]:
        return self.system.kernel.gate.calls

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.001)


class World:
    """Programs and tools, the lives in which they run, and a copy of the journal as it was after each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []
        self.tools: list[Tool] = []
        self.copies: list[Path] = []
        self.lines: dict[str, str] = {}  # outside of the daemon: what tools wrote that check their call ids, by these
        self.then: dict[Path, dict[str, str]] = {}  # the last that was outside before the commit that followed a copy
        self.recording = False
        self._lives = itertools.count()

    def agent(self, function: Agent, name: str | None = None, *, durable: bool = True, **mark: Any) -> str:
        named = AgentMark(name or function.__name__, "", durable=durable, **mark)
        self.programs = [program for program in self.programs if program.name != named.name]
        self.programs.append(Program(function, named, "test"))
        return named.name

    def tool(self, function: Agent) -> None:
        setattr(function, TOOL_ATTRIBUTE, ToolMark(function.__name__, ""))
        self.tools.append(Tool(function, getattr(function, TOOL_ATTRIBUTE), "test"))

    def about_to_commit(self) -> None:
        """Called on the thread of the journal: whatever is outside by now may be so though the commit never comes."""
        if self.recording and self.copies:
            self.then[self.copies[-1]] = dict(self.lines)

    def copied(self, store: Store) -> None:
        """Called after a commit, on the thread of the journal."""
        if self.recording:
            folder = self.folder / f"copy-{len(self.copies)}"
            folder.mkdir()
            store.db.execute("VACUUM INTO ?", (str(folder / FILE),))
            self.copies.append(folder)

    @asynccontextmanager
    async def life(self, folder: Path | None = None, *, orderly: bool = False) -> AsyncIterator[Life]:
        """A kernel on the journal of `folder`. At its end it stops as if killed: nothing more is written."""
        folder = folder or self.folder / f"life-{next(self._lives)}"
        folder.mkdir(exist_ok=True)
        launcher = InLoopLauncher()
        journal = Journal(folder, JournalSettings(sync="normal", attempts=1000))
        kernel = Kernel(
            version="test",
            folders=[],
            models={"sim": ModelSpec(driver="simulated", slots=8)},
            default_model="sim",
            cache=folder / "cache",
            make_context=Context,
            launcher=launcher,
            machine=FakeMachine(launcher),
            journal=journal,
        )
        system = System(kernel, launcher)
        for program in self.programs:
            system.programs.by_name[program.name] = program
        system.programs._installed = self.programs
        system.programs.tools = {tool.name: tool for tool in self.tools}
        system.programs._installed_tools = self.tools
        while not kernel.opened:
            await asyncio.sleep(0.001)
        try:
            yield Life(system, folder)
        finally:
            if not orderly:
                kernel._submitted._durable.stopping = True  # type: ignore[union-attr]
                journal.keep = journal.finish = lambda *_: None  # type: ignore[method-assign]
            await kernel.drain(0)
            await kernel.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    real = Store.transaction

    @contextmanager
    def copying(store: Store) -> Any:
        with real(store):
            yield
            world.about_to_commit()
        world.copied(store)

    monkeypatch.setattr(Store, "transaction", copying)
    return world


async def everywhere(
    world: World, program: str, check: Callable[[Life, Any], Awaitable[None] | None], **args: Any
) -> Any:
    """Run a task to its end, then again from each commit on the way: the same result comes of it, and `check` holds."""
    async with world.life() as life:
        world.recording = True
        task = await life.submit(program, **args)
        first = await life.result(task)
        world.recording = False
    tested = 0
    for copy in world.copies:
        world.lines = world.then.get(copy, world.lines)
        async with world.life(copy) as life:
            if not await life.rows("SELECT 1 FROM tasks"):
                continue
            assert await life.result(task) == first
            checked = check(life, first)
            if checked is not None:
                await checked
            assert await life.rows("SELECT * FROM calls") == []
            assert await life.rows("SELECT * FROM processes") == []
            tested += 1
    assert tested > 3
    return first


def nothing(life: Life, result: Any) -> None:
    """There is nothing more to check."""


def note(world: World) -> Agent:
    """A tool that writes a line once for each call id; the same call never brings another line."""

    def note(line: str, call_id: str) -> str:
        assert world.lines.setdefault(call_id, line) == line
        return line

    return note


async def test_time_chance_and_replies_are_at_a_replay_what_an_effect_has_seen(world: World) -> None:
    world.tool(note(world))

    async def gambler(ctx: Context) -> list[Any]:
        seen: list[Any] = []
        for _ in range(3):
            seen += [await ctx.time(), await ctx.random()]
            seen.append(await ctx.generate("a word", max_tokens=4, temperature=1.0))
            await ctx.tool("note", line=repr(seen))
        return seen

    program = world.agent(gambler)
    async with world.life() as life:
        world.recording = True
        task = await life.submit(program)
        first = await life.result(task)
        world.recording = False
    assert len(set(first)) == 9
    made = []
    for copy in world.copies:
        world.lines = world.then.get(copy, world.lines)
        async with world.life(copy) as life:
            if await life.rows("SELECT 1 FROM tasks"):
                seen = await life.result(task)
                assert repr(seen) in world.lines.values()
                assert len(world.lines) == 3
                made.append(life.calls.get("Generate", 0))
    assert made == sorted(made, reverse=True)
    assert (made[0], made[-1]) == (3, 0)


async def test_an_agent_comes_to_the_same_end_from_every_commit_and_its_tool_acts_once(world: World) -> None:
    world.tool(note(world))

    async def worker(ctx: Context, rounds: int) -> list[str]:
        done = []
        for number in range(rounds):
            text = await ctx.generate(f"number {number}", max_tokens=2, temperature=1.0)
            done.append(await ctx.tool("note", line=f"{number} {text}"))
        return done

    def once(life: Life, result: list[str]) -> None:
        assert sorted(world.lines.values()) == sorted(result)

    await everywhere(world, world.agent(worker), once, rounds=4)
