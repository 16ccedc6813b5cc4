"""A kernel with a journal for tests of durable agents, and a copy of that journal after each commit.

Every copy stands for a death of the daemon: a kernel that starts on it must replay the agents to where they were and
repeat no effect. The tests of durable agents use it and state what must hold; it never knows the right result itself.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from ipc.abi import TOOL_ATTRIBUTE, AgentMark, ToolMark
from ipc.codec import reveal
from ipc.errors import from_wire
from ipc.messages import Failed, Result
from ipc.syscalls import Submit, Submitted
from kernel.journal.journal import Journal
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store
from kernel.models.spec import ModelSpec
from kernel.programs.program import Program
from kernel.programs.tool import Tool
from tests.support.boot import boot
from tests.support.system import System

Agent = Callable[..., Any]

UNTIL = "substr(outcome, 1, 2) = x'9203'"  # outcomes that are the msgpack of an `Until`


class Life:
    """One run of a kernel, on the journal in `folder`."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder

    async def submit(self, program: str, /, **args: Any) -> str:
        submitted: Submitted = await self.system.call(Submit(program, args, detach=True))
        return submitted.id

    async def result(self, task: str) -> Any:
        """Wait for a task to end and return its value. Raises the error of the task."""
        recorder = await self.system.attach(task)
        await self.until(lambda: recorder.ended)
        event = recorder.events[-1]
        if isinstance(event, Failed):
            raise from_wire(event.error)
        assert isinstance(event, Result)
        return reveal(event.value)

    async def run(self, program: str, /, **args: Any) -> Any:
        return await self.result(await self.submit(program, **args))

    async def rows(self, query: str) -> list[Any]:
        found: list[Any] = await self.system.journal.read(lambda store: list(store.db.execute(query)))
        return found

    @property
    def calls(self) -> dict[str, int]:
        return self.system.kernel.gate.calls

    async def until(self, condition: Callable[[], Any]) -> None:
        await self.system.until(condition)


class World:
    """Programs and tools, the runs of a kernel that has them, and a copy of the journal after each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []
        self.tools: list[Tool] = []
        self.agents: list[Path] = []  # folders with files of agents
        self.copies: list[Path] = []
        self.kept: list[int] = []  # calls in each copy
        self.lines: dict[str, str] = {}  # by call id: the line that a tool wrote outside the daemon
        self.then: dict[Path, dict[str, str]] = {}  # by copy: `lines` just before the next commit
        self.recording = False
        self.attempts = 1000
        self.models = {"sim": ModelSpec(driver="simulated", slots=8)}
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
        """Called on the journal's thread before a commit: effects so far may exist even if it never happens."""
        if self.recording and self.copies:
            self.then[self.copies[-1]] = dict(self.lines)

    def copied(self, store: Store) -> None:
        """Called after a commit, on the journal's thread."""
        if self.recording:
            folder = self.folder / f"copy-{len(self.copies)}"
            folder.mkdir()
            store.db.execute("VACUUM INTO ?", (str(folder / FILE),))
            self.kept.append(next(iter(store.db.execute("SELECT count(*) FROM calls")))[0])
            self.copies.append(folder)

    @asynccontextmanager
    async def life(self, folder: Path | None = None, *, orderly: bool = False) -> AsyncIterator[Life]:
        """Run a kernel on the journal in `folder`. Unless `orderly`, it stops as if killed and writes nothing more."""
        folder = folder or self.folder / f"life-{next(self._lives)}"
        folder.mkdir(exist_ok=True)
        journal = Journal(folder, JournalSettings(sync="normal", attempts=self.attempts))
        system = boot(folder, models=self.models, journal=journal, agents=self.agents)
        for program in self.programs:
            system.install(program)
        for tool in self.tools:
            system.install_tool(tool)
        await system.until(lambda: system.kernel.opened)
        try:
            yield Life(system, folder)
        finally:
            if not orderly:
                system.tasks._durable.stopping = True
                journal.persist = lambda *_: None  # type: ignore[method-assign]
                journal.finish = lambda *_: None  # type: ignore[method-assign]
                system.tasks.wait_for_ends = _no_wait  # type: ignore[method-assign]
            await system.kernel.drain(0)
            await system.kernel.close()
            if not orderly:
                with apsw.Connection(str(folder / FILE)) as db:
                    db.execute("UPDATE stops SET clean = 0")


async def _no_wait() -> None:
    """Replaces a wait for the disk."""


def copy_each_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `world` before and after each commit, on the journal's thread."""
    real = Store.transaction

    @contextmanager
    def copying(store: Store, **options: Any) -> Any:
        with real(store, **options):
            yield
            world.about_to_commit()
        world.copied(store)

    monkeypatch.setattr(Store, "transaction", copying)


async def everywhere(
    world: World, program: str, check: Callable[[Life, Any], Awaitable[None] | None], **args: Any
) -> Any:
    """Run a task to its end, then restart it from each commit on the way.

    Each restart must give the same result and pass `check`.
    """
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
    """A check for `everywhere` that checks nothing more."""


def note(world: World) -> Agent:
    """A tool that writes one line per call id, and fails if a repeated call has another line."""

    def note(line: str, call_id: str) -> str:
        assert world.lines.setdefault(call_id, line) == line
        return line

    return note


def waits(life: Life, count: int) -> Callable[[], bool]:
    """A condition: `count` calls of `receive` were made in `life`. Replayed calls do not count."""
    return lambda: life.calls.get("Receive", 0) == count
