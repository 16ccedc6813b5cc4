"""Durable agents in a kernel with a journal, which is copied after each commit: every copy is a death of the daemon.

A kernel that starts on such a copy has to bring the agents to where they were, with what they did done once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from ipc.abi import TOOL_ATTRIBUTE, AgentMark, ToolMark
from ipc.codec import reveal
from ipc.errors import (
    CheckpointRefused,
    HistoryDamaged,
    InvalidCall,
    LlmosError,
    NameTaken,
    ReplayDiverged,
    TimedOut,
    TooManyAttempts,
    UnknownName,
    from_wire,
)
from ipc.messages import Failed, Result
from ipc.syscalls import (
    Attach,
    Call,
    Publish,
    Regions,
    Resume,
    Send,
    SharedDelete,
    SharedGet,
    SharedSet,
    Submit,
    Suspend,
)
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
        self.kept: list[int] = []  # calls in each copy
        self.lines: dict[str, str] = {}  # outside of the daemon: what tools wrote that check their call ids, by these
        self.then: dict[Path, dict[str, str]] = {}  # the last that was outside before the commit that followed a copy
        self.recording = False
        self.attempts = 1000
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
            self.kept.append(next(iter(store.db.execute("SELECT count(*) FROM calls")))[0])
            self.copies.append(folder)

    @asynccontextmanager
    async def life(self, folder: Path | None = None, *, orderly: bool = False) -> AsyncIterator[Life]:
        """A kernel on the journal of `folder`. At its end it stops as if killed: nothing more is written."""
        folder = folder or self.folder / f"life-{next(self._lives)}"
        folder.mkdir(exist_ok=True)
        launcher = InLoopLauncher()
        journal = Journal(folder, JournalSettings(sync="normal", attempts=self.attempts))
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
            if not orderly:
                with apsw.Connection(str(folder / FILE)) as db:
                    db.execute("UPDATE stops SET clean = 0")


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


# ---- children


async def test_children_keep_their_pids_and_what_has_ended_is_not_run_again(world: World) -> None:
    world.tool(note(world))
    begun: list[str] = []

    async def plain(ctx: Context, number: int) -> list[int]:
        begun.append(f"plain {number}")
        return [ctx.pid, number]

    async def child(ctx: Context, number: int) -> list[Any]:
        text = await ctx.generate(f"child {number}", max_tokens=2, temperature=1.0)
        await ctx.tool("note", line=text)
        return [ctx.pid, text]

    async def parent(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn(program, {"number": n}) for n, program in enumerate(("plain", "child", "child"))]
        ends = [await ctx.wait(pid) for pid in pids]
        assert pids == [end[0] for end in ends]
        return [ctx.pid, pids, ends, await ctx.wait(pids[1])]

    world.agent(plain, durable=False)
    world.agent(child)
    made: list[int] = []

    def count(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == sorted(end[1] for end in result[2][1:])
        made.append(life.calls.get("Generate", 0))

    first = await everywhere(world, world.agent(parent), count)
    assert len({first[0], *first[1]}) == 4
    assert made[-1] == 0
    begun.clear()
    async with world.life(world.copies[-2]) as life:  # the child that is not durable had ended, and had been waited for
        await life.until(lambda: not life.system.table.alive or begun or not life.system.kernel._submitted._tasks)  # type: ignore[union-attr]
        assert begun == []


async def test_a_failed_child_fails_the_same_way_again(world: World) -> None:
    async def broken(ctx: Context) -> None:
        raise ValueError("no good")

    async def parent(ctx: Context) -> str:
        try:
            await ctx.wait(await ctx.spawn("broken"))
        except LlmosError as error:
            text = f"{type(error).__name__} {error.message}"
        return await ctx.generate(text, max_tokens=1)

    world.agent(broken, durable=False)
    await everywhere(world, world.agent(parent), nothing)


# ---- messages


async def test_messages_between_durable_agents_come_once_and_in_order(world: World) -> None:
    async def reader(ctx: Context) -> list[Any]:
        bodies: list[Any] = []
        while len(bodies) < 9:
            message = await ctx.receive()
            bodies.append([message.id, message.body])
        return bodies

    async def writer(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("reader", name="library")
        sent = [await ctx.send("library" if n % 2 else pid, {"number": n}) for n in range(9)]
        read = await ctx.wait(pid)
        assert [message for message, _ in read] == sent
        return [body["number"] for _, body in read]

    world.agent(reader)
    assert await everywhere(world, world.agent(writer), nothing) == list(range(9))


async def test_a_call_is_answered_once_though_either_side_dies(world: World) -> None:
    world.tool(note(world))

    async def server(ctx: Context) -> int:
        total = 0
        for _ in range(4):
            message = await ctx.receive()
            total += message.body
            await ctx.tool("note", line=f"added {message.body}")
            await ctx.reply(message, total)
        return total

    async def caller(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("server")
        totals = [await ctx.call(pid, number) for number in (1, 20, 300, 4000)]
        return [totals, await ctx.wait(pid)]

    world.agent(server)

    def once(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == ["added 1", "added 20", "added 300", "added 4000"]

    first = await everywhere(world, world.agent(caller), once)
    assert first == [[1, 21, 321, 4321], 4321]


async def test_what_is_published_comes_once_to_durable_subscribers(world: World) -> None:
    async def listener(ctx: Context) -> list[Any]:
        await ctx.subscribe("news.*")
        await ctx.send("paper", "ready")
        return [(await ctx.receive(timeout=30)).body for _ in range(3)]

    async def paper(ctx: Context) -> list[Any]:
        await ctx.register("paper")
        pids = [await ctx.spawn("listener") for _ in range(2)]
        for _ in pids:
            await ctx.receive()
        counts = [await ctx.publish("news.today", number) for number in range(3)]
        return [counts, [await ctx.wait(pid) for pid in pids]]

    world.agent(listener)
    assert await everywhere(world, world.agent(paper), nothing) == [[2, 2, 2], [[0, 1, 2], [0, 1, 2]]]


async def test_what_clients_sent_waits_in_its_order_and_unread_messages_end_as_dead_letters(world: World) -> None:
    async def reader(ctx: Context) -> list[Any]:
        await ctx.register("reader")
        first = [(await ctx.receive()).body for _ in range(2)]
        await ctx.receive(type="go")
        return first + [(await ctx.receive()).body for _ in range(2)]

    program = world.agent(reader)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: "reader" in life.system.kernel.messaging._names._holders)
        for number in range(6):
            await life.system.call(Send("reader", [number]))
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send("reader", None, type="go"))  # by its name, whether it has begun or not
        assert await life.result(task) == [[0], [1], [2], [3]]
        assert await life.rows("SELECT * FROM messages") == []
        assert life.system.kernel.messaging.dead_letters.counts["the recipient ended"] == 2
        with pytest.raises(UnknownName):
            await life.system.call(Send("reader", 7))


async def test_a_reply_to_a_client_that_is_gone_is_a_dead_letter_and_no_error(world: World) -> None:
    async def server(ctx: Context) -> str:
        await ctx.register("server")
        first = await ctx.receive()
        await ctx.receive(type="go")
        await ctx.reply(first, "late")
        second = await ctx.receive()
        await ctx.reply(second, "in time")
        return "done"

    program = world.agent(server)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: "server" in life.system.kernel.messaging._names._holders)
        life.system.thread(life.system.kernel.gate.enter(life.system.client, Call("server", 1)))
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send("server", None, type="go"))
        assert await life.system.call(Call("server", 2)) == "in time"
        assert await life.result(task) == "done"
        assert life.system.kernel.messaging.dead_letters.counts["the caller no longer waits"] == 1


# ---- state


async def test_memory_names_and_subscriptions_are_there_again(world: World) -> None:
    async def keeper(ctx: Context) -> list[Any]:
        await ctx.register("keeper")
        await ctx.subscribe("all.#")
        for number in range(4):
            await ctx.memory.set(f"key {number}", [number])
        await ctx.memory.delete("key 1")
        await ctx.memory.set("key 2", "new")
        body = (await ctx.receive()).body
        return [body, await ctx.memory.keys(), await ctx.memory.get("key 2"), await ctx.memory.get("key 1", 7)]

    program = world.agent(keeper)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        while not await life.system.call(Publish("all.of.you", "hello")):
            await asyncio.sleep(0.001)
        assert await life.result(task) == ["hello", ["key 0", "key 2", "key 3"], "new", 7]
        assert life.calls.get("MemorySet", 0) == 0
        assert life.calls.get("Register", 0) == 0


async def test_a_name_of_a_durable_agent_is_given_to_nobody_else_before_it_is_back(world: World) -> None:
    async def holder(ctx: Context) -> str:
        await ctx.register("throne")
        return (await ctx.receive()).body

    async def rival(ctx: Context) -> int:
        try:
            await ctx.register("throne")
        except NameTaken as error:
            return int(error.data["pid"])
        return 0

    program = world.agent(holder)
    other = world.agent(rival, durable=False)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "holder")
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        process = life.system.spawn(other)
        assert await life.system.result(process) == pid
        assert process.pid > pid
        await life.system.call(Send("throne", "long live"))
        assert await life.result(task) == "long live"


async def test_a_checkpoint_cuts_the_history_and_gives_its_state_back(world: World) -> None:
    world.tool(note(world))

    async def looper(ctx: Context) -> list[str]:
        done = await ctx.checkpoint([])
        while len(done) < 5:
            text = await ctx.generate(f"round {len(done)}", max_tokens=2, temperature=1.0)
            done.append(await ctx.tool("note", line=f"{len(done)} {text}"))
            done = await ctx.checkpoint(done)
        return done

    program = world.agent(looper)

    def once(life: Life, result: list[str]) -> None:
        assert sorted(world.lines.values()) == result

    await everywhere(world, program, once)
    assert max(world.kept) == 2
    assert world.kept.count(0) > 5


async def test_a_checkpoint_is_refused_beside_children_and_threads_and_is_nothing_to_others(world: World) -> None:
    async def idle(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def looper(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("idle")
        refused = 0
        try:
            await ctx.checkpoint(1)
        except CheckpointRefused:
            refused += 1
        await ctx.kill(pid)
        thread = ctx.start_thread(ctx.sleep(1e6))
        try:
            await ctx.checkpoint(2)
        except CheckpointRefused:
            refused += 1
        thread.cancel()
        await asyncio.wait([thread])
        return [refused, await ctx.checkpoint({"a": (1, 2)})]

    async def careless(ctx: Context) -> Any:
        state = object()
        return await ctx.checkpoint(state) is state

    world.agent(idle, durable=False)
    world.agent(looper)
    world.agent(careless, durable=False)
    async with world.life() as life:
        assert await life.run("looper") == [2, {"a": [1, 2]}]
        assert await life.run("careless") is True


async def test_a_sleep_goes_on_for_the_rest_of_its_time_and_is_not_slept_twice(world: World) -> None:
    async def sleeper(ctx: Context) -> float:
        begun = await ctx.time()
        await ctx.sleep(3600.0)
        return begun

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Sleep"))
        await life.rows("SELECT 1")
        folder = life.folder
    due = "substr(outcome, 1, 2) = x'9203'"  # msgpack of an `Until`
    with apsw.Connection(str(folder / FILE)) as db:
        ((blob,),) = db.execute(f"SELECT outcome FROM calls WHERE {due}")
        _, until = msgspec.msgpack.decode(blob)
        assert 3500 < until - time.time() <= 3600
        later = msgspec.msgpack.encode([3, time.time() + 0.05])
        db.execute(f"UPDATE calls SET outcome = ? WHERE {due}", (later,))
    async with world.life(folder) as life:
        assert await life.result(task) <= time.time()


async def test_threads_replay_each_by_itself_however_they_interleave(world: World) -> None:
    world.tool(note(world))

    async def team(ctx: Context) -> list[Any]:
        async def member(number: int) -> list[Any]:
            seen = []
            for step in range(3):
                await asyncio.sleep(await ctx.random() * 0.002)
                text = await ctx.generate(f"{number} {step}", max_tokens=1 + number, temperature=1.0)
                seen.append(await ctx.tool("note", line=f"{number} {step} {text}"))
            return seen

        first = ctx.start_thread(member(0))
        rest = await asyncio.gather(*(member(number) for number in range(1, 4)))
        return [await first, *rest]

    def once(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == sorted(itertools.chain.from_iterable(result))

    await everywhere(world, world.agent(team), once)


async def test_a_timeout_that_cancelled_a_call_cancels_it_again(world: World) -> None:
    async def patient(ctx: Context) -> list[str]:
        seen = []
        for _ in range(2):
            try:
                async with asyncio.timeout(0.01):
                    await ctx.receive()
            except TimeoutError:
                seen.append(await ctx.generate("timed out", max_tokens=1))
        try:
            await ctx.receive(timeout=0.001)
        except TimedOut:
            seen.append("nothing")
        return seen

    await everywhere(world, world.agent(patient), nothing)


async def test_locks_are_taken_again_at_a_replay(world: World) -> None:
    async def careful(ctx: Context) -> list[str]:
        seen = []
        async with ctx.lock("door"):
            seen.append(await ctx.generate("inside", max_tokens=1))
            async with ctx.semaphore("two", 2):
                seen.append(await ctx.generate("further inside", max_tokens=1))
        return seen

    def made(life: Life, result: Any) -> None:
        assert life.calls.get("AcquireLock", 0) in (0, 1)

    await everywhere(world, world.agent(careful), made)


# ---- faults


async def test_a_replay_that_takes_another_way_ends_and_shows_both_sides(world: World) -> None:
    word = ["then"]

    async def wayward(ctx: Context) -> None:
        await ctx.time()
        with suppress(LlmosError):
            await ctx.generate(f"a word for {word[0]}", max_tokens=1)
        await ctx.receive()

    async def parent(ctx: Context) -> None:
        await ctx.wait(await ctx.spawn("wayward"))

    world.agent(wayward)
    world.agent(parent)
    async with world.life() as life:
        tasks = [await life.submit("wayward"), await life.submit("parent")]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        await life.rows("SELECT 1")
        folder = life.folder
    word[0] = "now"
    world.agent(wayward)
    world.programs[-1].version = "another"
    async with world.life(folder) as life:
        for task in tasks:
            with pytest.raises(
                ReplayDiverged, match=r"a word for then.*a word for now.*its code has changed"
            ) as caught:
                await life.result(task)
            assert caught.value.data["number"] == 1
        assert await life.rows("SELECT * FROM calls") == []


async def test_a_row_that_cannot_be_read_ends_its_own_task_and_no_other(world: World) -> None:
    async def reader(ctx: Context) -> Any:
        await ctx.time()
        return (await ctx.receive()).body

    program = world.agent(reader)
    async with world.life() as life:
        tasks = [await life.submit(program) for _ in range(4)]
        pids = [process.pid for process in life.system.table.alive.values() if process.program == "reader"]
        await life.until(lambda: life.calls.get("Receive", 0) == 4)
        await life.rows("SELECT 1")
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        db.execute("UPDATE calls SET outcome = x'c1' WHERE pid = ?", (pids[0],))
        db.execute("UPDATE calls SET call = x'00' WHERE pid = ?", (pids[1],))
        db.execute("INSERT INTO messages (pid, message, envelope) VALUES (?, 1, x'93c1')", (pids[2],))
    async with world.life(folder) as life:
        for task in tasks[:3]:
            with pytest.raises(HistoryDamaged):
                await life.result(task)
        await life.system.call(Send(pids[3], "alive"))
        assert await life.result(tasks[3]) == "alive"


async def test_what_was_suspended_is_suspended_again_until_it_is_resumed(world: World) -> None:
    async def sleeper(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "sleeper")
        await life.system.call(Suspend(pid))
        await life.system.call(Send(pid, "morning"))
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "again"))
        process = life.system.table.alive[pid]
        await life.system.turns(50)
        assert (process.suspended, process.calls) == (True, 0)
        await life.system.call(Resume(pid))
        assert await life.result(task) == "morning"


async def test_any_program_is_run_as_a_durable_one_on_demand_and_no_other_keeps_calls(world: World) -> None:
    async def plain(ctx: Context) -> list[Any]:
        return [ctx.attempt, await ctx.time(), (await ctx.receive()).type]

    program = world.agent(plain, durable=False)
    async with world.life() as life:
        kept, lost = [
            (await life.system.call(Submit(program, detach=True, durable=durable))).id for durable in (True, False)
        ]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        assert [row[0] for row in await life.rows("SELECT count(*) FROM calls")] == [1]
        folder = life.folder
        before = time.time()
    async with world.life(folder) as life:
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        for pid in [process.pid for process in life.system.table.alive.values() if process.program == "plain"]:
            await life.system.call(Send(pid, None, type="go"))
        results = [await life.result(task) for task in (kept, lost)]
        assert [result[0] for result in results] == [2, 2]
        assert results[0][1] < before < results[1][1]


async def test_durable_regions_are_there_again_with_versions_that_go_on_growing(world: World) -> None:
    async def scribe(ctx: Context) -> list[int]:
        book, scrap = ctx.shared("book", durable=True), ctx.shared("scrap")
        await scrap.set("gone with the daemon")
        versions = [await book.set({"pages": [1]}), await ctx.shared("book").set({"pages": [1, 2]})]
        await ctx.receive()
        return [*versions, await book.compare_and_set("end", versions[-1]), await scrap.set("anew")]

    program = world.agent(scribe)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        assert await life.system.call(SharedSet("mine", 1, durable=True))
        await life.system.call(SharedSet("yours", 1, durable=True))
        await life.system.call(SharedDelete("yours"))
        with pytest.raises(InvalidCall, match="not durable"):
            await life.system.call(SharedSet("odd", 1, ephemeral=True, durable=True))
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "scribe")
        folder = life.folder
    async with world.life(folder) as life:
        regions = {region.name: region for region in await life.system.call(Regions())}
        assert regions.keys() == {"book", "mine"}
        value, version = await life.system.call(SharedGet("book"))
        assert reveal(value) == {"pages": [1, 2]}
        await life.system.call(Send(pid, None))
        versions = await life.result(task)
        assert versions == sorted(versions)
        assert versions[1] == version
        assert reveal((await life.system.call(SharedGet("book"))).value) == "end"
    async with world.life(folder) as life:
        value, version = await life.system.call(SharedGet("book"))
        assert (reveal(value), version) == ("end", versions[2])


async def test_a_task_that_gets_further_in_each_life_is_not_given_up(world: World) -> None:
    async def slow(ctx: Context) -> int:
        for number in range(5):
            await ctx.memory.set("number", number)
            await ctx.receive(sender=None, type=f"go {number}")
        return ctx.attempt

    async def stuck(ctx: Context) -> None:
        await ctx.receive()

    world.agent(slow)
    world.agent(stuck)
    world.attempts = 3
    folder: Path | None = None
    pid, tasks = 0, list[str]()
    for number in range(4):
        async with world.life(folder) as life:
            folder = life.folder
            if not tasks:
                tasks = [await life.submit("slow"), await life.submit("stuck")]
                (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "slow")
            await life.system.call(Send(pid, None, type=f"go {number}"))
            while msgspec.msgpack.encode(number + 1) not in [
                row[0] for row in await life.rows("SELECT value FROM memory")
            ]:
                await asyncio.sleep(0.001)
    async with world.life(folder) as life:
        await life.system.call(Send(pid, None, type="go 4"))
        assert await life.result(tasks[0]) == 5
        with pytest.raises(TooManyAttempts):
            await life.result(tasks[1])


async def test_a_monitor_tells_once_and_has_the_reference_that_it_had(world: World) -> None:
    async def child(ctx: Context) -> None:
        await ctx.generate("x", max_tokens=1)
        raise ValueError("as planned")

    async def parent(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("child")
        ref = await ctx.monitor(pid)
        down = await ctx.receive(type="down", correlation=ref)
        try:
            await ctx.receive(timeout=0.05)
        except TimedOut:
            return [ref, pid, down.body["reason"], down.body["ref"]]
        raise AssertionError("told twice")

    world.agent(child)
    ref, _, reason, told = await everywhere(world, world.agent(parent), nothing)
    assert (reason, told) == ("failed", ref)


async def test_who_was_monitored_and_is_gone_with_the_daemon_is_told_of(world: World) -> None:
    async def other(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def watcher(ctx: Context, pid: int) -> str:
        ref = await ctx.monitor(pid)
        await ctx.time()
        return (await ctx.receive(correlation=ref)).body["reason"]

    program = world.agent(other, durable=False)
    watching = world.agent(watcher)
    async with world.life() as life:
        process = life.system.spawn(program)
        task = await life.submit(watching, pid=process.pid)
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        assert await life.result(task) == "unknown"


async def test_a_large_result_of_a_tool_is_there_again_under_its_name(world: World) -> None:
    runs = []

    def large(call_id: str) -> bytes:
        runs.append(call_id)
        return bytes(2_000_000)

    async def reader(ctx: Context) -> list[Any]:
        reference = await ctx.tool("large")
        await ctx.generate("x", max_tokens=1)
        value = (await ctx.shared(reference.name).get()).value
        return [reference.name, reference.size, value == bytes(2_000_000)]

    world.tool(large)
    name, size, same = await everywhere(world, world.agent(reader), nothing)
    assert same
    assert size > 2_000_000
    assert {f"tool:{run}" for run in runs} == {name}


class Order(msgspec.Struct, frozen=True):
    dish: str


async def test_a_declared_body_is_its_struct_at_first_and_at_a_replay(world: World) -> None:
    async def cook(ctx: Context) -> list[str]:
        orders = [(await ctx.receive()).body for _ in range(3)]
        assert all(type(order) is Order for order in orders)
        await ctx.generate("x", max_tokens=1)
        return [order.dish for order in orders]

    async def guest(ctx: Context) -> Any:
        pid = await ctx.spawn("cook")
        for dish in ("soup", "fish", "cake"):
            await ctx.send(pid, Order(dish))
        return await ctx.wait(pid)

    world.agent(cook, accepts={"Order": Order})
    assert await everywhere(world, world.agent(guest), nothing) == ["soup", "fish", "cake"]


async def test_what_was_logged_and_emitted_before_is_not_said_again(world: World) -> None:
    async def talker(ctx: Context) -> None:
        ctx.log("first")
        await ctx.emit("first")
        await ctx.time()
        ctx.log("second")
        await ctx.receive()
        ctx.log("third")

    program = world.agent(talker)
    async with world.life() as life:
        task = await life.submit(program)
        (process,) = (process for process in life.system.table.alive.values() if process.program == "talker")
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        assert [line.event for line in process.log or ()] == ["first", "second"]
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(process.pid, None))
        process = life.system.table.alive[process.pid]
        await life.result(task)
        # The second line follows the last call that is kept: nobody knows whether it was written.
        assert [line.event for line in process.log or ()] == ["second", "third"]
        assert life.calls.get("Emit", 0) == 0


async def test_an_orderly_stop_leaves_a_detached_durable_agent_where_it_was(world: World) -> None:
    async def worker(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn(program) for program in ("plain", "idle")]
        text = await ctx.generate("x", max_tokens=1)
        return [ctx.pid, pids, text, [await ctx.wait(pid) for pid in pids]]

    async def idle(ctx: Context) -> int:
        await ctx.receive()
        return ctx.pid

    world.agent(idle, "plain", durable=False)
    world.agent(idle)
    program = world.agent(worker)
    async with world.life(orderly=True) as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Wait"))
        folder = life.folder
    async with world.life(folder) as life:
        assert len(await life.rows("SELECT * FROM processes WHERE status IS NULL")) == 3
        pids = [row[0] for row in await life.rows("SELECT pid FROM processes ORDER BY pid")]
        for pid in pids[1:]:
            await life.until(lambda pid=pid: pid in life.system.table.alive)  # type: ignore[misc]
            await life.system.call(Send(pid, None))
        own, children, _, ends = await life.result(task)
        assert [own, *children] == pids
        assert ends == children
        assert life.calls.get("Generate", 0) == 0
