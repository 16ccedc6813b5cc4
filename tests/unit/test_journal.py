"""The journal alone: what was acknowledged is there after any death, and nothing that happens to the disk is silent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from ipc.codec import encode
from ipc.errors import JournalUnavailable, KeyReused, LlmosError, StateInUse, StateTooNew
from ipc.syscalls import Submit
from kernel.journal import changes, histories, log_file, schema, store, trouble, writer
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted, End, Kept
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store, open_store

pytestmark = pytest.mark.real_time


def task(value: Any = 1, key: str | None = None, owner: str = "ann", program: str = "echo") -> Accepted:
    return Accepted(program, owner, key, encode(Submit(program, {"value": value})), time.time())


def end(number: int, reason: str = "done", outcome: bytes = b"result", ended: float | None = None) -> End:
    return End(number, time.time() if ended is None else ended, reason, "", outcome)


class Desk:
    """A journal, with its callbacks as things to await."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.journal = Journal(folder, JournalSettings(**settings))
        self.pending: list[Accepted] = []
        self.recovered = asyncio.Event()
        self.failure: asyncio.Future[LlmosError] = asyncio.get_running_loop().create_future()
        self.journal.on_pending = self._on_pending
        self.journal.on_failure = self.failure.set_result

    def _on_pending(self, portion: list[Accepted]) -> None:
        self.pending += portion
        self.recovered.set()

    def accept(self, one: Accepted) -> asyncio.Future[Any]:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.journal.accept(one, answered.set_result)
        return answered

    def finish(self, one: End) -> asyncio.Queue[Any]:
        """Its answers: there may be two."""
        answers: asyncio.Queue[Any] = asyncio.Queue()
        self.journal.finish(one, answers.put_nowait)
        return answers

    async def find(self, number: int) -> Kept | None:
        found: Kept | None = await self.journal.read(lambda store: store.find(number))
        return found


@asynccontextmanager
async def desk(folder: Path, **settings: Any) -> AsyncIterator[Desk]:
    opened = Desk(folder, **settings)
    try:
        yield opened
    finally:
        await opened.journal.close()


async def accepted(folder: Path, *tasks: Accepted) -> list[Accepted]:
    """Tasks of a life that has ended in order."""
    async with desk(folder) as opened:
        return list(await asyncio.gather(*map(opened.accept, tasks)))


def crash(folder: Path) -> None:
    """Make the last life one that did not end in order, as far as the next one can tell."""
    opened = Store(folder / FILE, "full")
    with opened.transaction():
        opened.db.execute("UPDATE stops SET clean = 0")
    opened.close()


# ---- what is kept


async def test_what_was_accepted_and_not_ended_comes_back_in_its_order(tmp_path: Path) -> None:
    first, second, third = await accepted(tmp_path, task(1), task(2), task(3))
    assert 0 < first.id < second.id < third.id
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        assert [one.id for one in opened.pending] == [first.id, second.id, third.id]
        assert [one.call for one in opened.pending] == [first.call, second.call, third.call]
        assert {one.attempt for one in opened.pending} == {2}
        assert await opened.finish(end(second.id)).get() is None
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        assert [one.id for one in opened.pending] == [first.id, third.id]
        found = await opened.find(second.id)
        assert found is not None
        assert (found.reason, found.outcome, found.attempt) == ("done", b"result", 2)
        assert await opened.find(12345) is None


async def test_the_first_end_of_a_task_is_the_one_that_counts(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        await opened.finish(end(one.id, "done", b"first")).get()
        await opened.finish(end(one.id, "killed", b"second")).get()
        found = await opened.find(one.id)
        assert found is not None
        assert (found.reason, found.outcome) == ("done", b"first")


def instructions(folder: Path, tasks: int) -> dict[str, int]:
    """Instructions of SQLite's machine that a start on so many durable tasks takes, and the end of one of them."""
    folder.mkdir()
    opened = open_store(folder / FILE, "normal")
    with opened.transaction():
        rows = [msgspec.structs.replace(task(), pid=1 + 2 * number) for number in range(tasks)]
        opened.accept(rows)
        for row in rows:
            child = changes.PutProcess(row.pid + 1, row.id, row.pid, "child", "", True)
            opened.keep([child, changes.PutCall(row.pid, 0, "0", 0, b"", b""), changes.PutName(f"{row.pid}", row.pid)])
    count = [0]

    def tick() -> bool:
        count[0] += 1
        return False

    opened.db.set_progress_handler(tick, 1)

    def counted(work: Callable[[], Any]) -> int:
        count[0] = 0
        work()
        return count[0]

    pid, number = rows[-1].pid, rows[-1].id
    taken = {
        "life": counted(lambda: opened.begin_life(5)),
        "worn out": counted(lambda: opened.worn_out(3)),
        "ended": counted(lambda: histories.forget_ended(opened)),
        "opening": counted(lambda: histories.opening(opened)),
        "pending": counted(lambda: list(opened.pending())),
        "load": counted(lambda: histories.load(opened, [number])) * tasks,
        "child": counted(lambda: opened.keep([changes.ChildEnded(pid + 1, b"")])) * tasks,
        "checkpoint": counted(lambda: opened.keep([changes.Checkpointed(pid, 2, b"", b"")])) * tasks,
        "end": counted(lambda: opened.keep([changes.TaskEnded(number)])) * tasks,
        "finish": counted(lambda: opened.finish([end(row.id, ended=1.0) for row in rows])),
        "purge": counted(lambda: opened.purge(2.0)),
    }
    opened.close()
    return taken


def test_what_a_start_and_an_end_take_grows_no_faster_than_what_is_pending(tmp_path: Path) -> None:
    few, many = instructions(tmp_path / "few", 100), instructions(tmp_path / "many", 400)
    assert {name: taken for name, taken in many.items() if taken > 5 * few[name] + 100} == {}


async def test_ids_grow_though_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = await accepted(tmp_path, task())
    monkeypatch.setattr(store.time, "time", lambda: 1000.0)
    first, second = await accepted(tmp_path, task(), task())
    assert before.id < first.id < second.id


async def test_the_same_key_is_the_same_task_and_never_other_work(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        first, twin, other = await asyncio.gather(
            opened.accept(task(1, "k")), opened.accept(task(1, "k")), opened.accept(task(2, "k"))
        )
        assert isinstance(twin, Kept)
        assert twin.id == first.id
        assert isinstance(other, KeyReused)
        bob = await opened.accept(task(2, "k", owner="bob"))
        assert isinstance(bob, Accepted)
        await opened.finish(end(first.id)).get()
    async with desk(tmp_path) as opened:
        again = await opened.accept(task(1, "k"))
        assert (again.id, again.outcome) == (first.id, b"result")
        assert isinstance(await opened.accept(task(1, "k", program="ask")), KeyReused)


async def test_history_is_newest_first_and_goes_on_where_a_page_ended(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        ids = [(await opened.accept(task(number))).id for number in range(5)]
        page = await opened.journal.read(lambda store: store.history(2, None))
        assert [one.id for one in page] == [ids[4], ids[3]]
        page = await opened.journal.read(lambda store: store.history(10, ids[3]))
        assert [one.id for one in page] == [ids[2], ids[1], ids[0]]


# ---- group commit


async def test_tasks_of_one_turn_share_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    real = Store.accept

    def counted(self: Store, tasks: Any) -> Any:
        commits.append(len(tasks))
        return real(self, tasks)

    monkeypatch.setattr(Store, "accept", counted)
    async with desk(tmp_path) as opened:
        await asyncio.gather(*(opened.accept(task(number)) for number in range(1500)))
    assert commits == [1500]


async def test_the_loop_goes_on_while_the_disk_is_slow_and_who_gives_up_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = threading.Event()
    real = Store.accept

    def late(self: Store, tasks: Any) -> Any:
        slow.wait()
        return real(self, tasks)

    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        monkeypatch.setattr(Store, "accept", late)
        first = opened.accept(task(1))
        reader = asyncio.ensure_future(opened.find(1))
        for _ in range(100):
            await asyncio.sleep(0)  # were the loop to wait for the disk, it would wait for ever
        assert not first.done()
        reader.cancel()
        second = opened.accept(task(2))
        slow.set()
        assert (await first).id < (await second).id
        assert reader.cancelled()


# ---- lives


async def test_a_task_is_given_up_after_so_many_deaths_of_the_daemon_and_not_after_orderly_stops(
    tmp_path: Path,
) -> None:
    (one,) = await accepted(tmp_path, task())
    for attempt in (2, 3, 4):
        async with desk(tmp_path, attempts=2) as opened:
            await opened.recovered.wait()
            assert [row.attempt for row in opened.pending] == [attempt]
    crash(tmp_path)
    async with desk(tmp_path, attempts=2) as opened:
        await opened.recovered.wait()
        assert [row.attempt for row in opened.pending] == [5]
    crash(tmp_path)
    async with desk(tmp_path, attempts=2) as opened:
        found = await opened.find(one.id)
        assert found is not None
        assert (found.reason, found.error, opened.pending) == ("failed", "TooManyAttempts", [])
        assert found.attempt == 5  # it was not begun once more


async def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    async with desk(tmp_path):
        with pytest.raises(StateInUse, match=f"pid {os.getpid()}") as refused:
            Journal(tmp_path, JournalSettings())
        assert refused.value.data["pid"] == os.getpid()
    await accepted(tmp_path, task())


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable, match="missing"):
        Journal(tmp_path / "missing", JournalSettings())


async def test_a_journal_that_cannot_be_opened_says_why_and_refuses(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    async with desk(tmp_path) as opened:
        assert "cannot be used" in (await opened.failure).message
        assert isinstance(await opened.accept(task()), JournalUnavailable)
        with pytest.raises(JournalUnavailable):
            await opened.find(1)


# ---- the file


async def test_a_later_version_brings_the_tables_up_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await accepted(tmp_path, task())
    step = "ALTER TABLE tasks ADD COLUMN colour TEXT; UPDATE tasks SET colour = 'red'"
    monkeypatch.setattr(store, "MIGRATIONS", [*schema.MIGRATIONS, step])
    opened = open_store(tmp_path / FILE, "full")
    assert opened.version == len(schema.MIGRATIONS) + 1
    assert list(opened.db.execute("SELECT id, colour FROM tasks")) == [(one.id, "red")]
    opened.close()


async def test_a_step_that_fails_leaves_the_version_that_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await accepted(tmp_path, task())
    step = "ALTER TABLE tasks ADD COLUMN colour TEXT; SELECT nothing_of_that_name()"
    monkeypatch.setattr(store, "MIGRATIONS", [*schema.MIGRATIONS, step])
    with pytest.raises(JournalUnavailable, match="nothing_of_that_name"):
        open_store(tmp_path / FILE, "full")
    monkeypatch.undo()
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        assert len(opened.pending) == 1


async def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    await accepted(tmp_path, task())
    opened = Store(tmp_path / FILE, "full")
    opened.db.execute("PRAGMA user_version = 99")
    opened.checkpoint()
    opened.close()
    before = (tmp_path / FILE).read_bytes()
    async with desk(tmp_path) as new:
        error = await new.failure
    assert isinstance(error, StateTooNew)
    assert error.data["found"] == 99
    assert (tmp_path / FILE).read_bytes() == before


def paths_kept_aside(folder: Path) -> list[Path]:
    """The journals that were found damaged, without their logs."""
    return [path for path in folder.glob(f"{FILE}.damaged-*") if not path.name.endswith(("-shm", "-wal"))]


def kept_aside(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in paths_kept_aside(folder)]


async def test_a_database_of_another_program_is_kept_aside_and_not_written_into(tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / FILE))) as db:
        db.execute("CREATE TABLE tasks (theirs); INSERT INTO tasks VALUES (5)")
    async with desk(tmp_path) as opened:
        assert isinstance(await opened.accept(task()), Accepted)
    (aside,) = paths_kept_aside(tmp_path)
    with contextlib.closing(apsw.Connection(str(aside))) as db:
        assert list(db.execute("SELECT * FROM tasks")) == [(5,)]
        assert list(db.execute("SELECT count(*) FROM sqlite_schema")) == [(1,)]


def scribble(data: bytes) -> bytes:
    """Garbage over the pages after the first."""
    return data[:4096] + random.Random(1).randbytes(len(data) - 4096)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda data: b"no journal at all " * 1000, id="another file"),
        pytest.param(lambda data: data[: len(data) // 2 + 100], id="cut off"),
        pytest.param(scribble, id="scribbled over"),
    ],
)
async def test_a_damaged_journal_is_kept_aside_as_it_is_and_a_new_one_begun(
    tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    await accepted(tmp_path, *(task("x" * 500) for _ in range(200)))
    damaged = harm((tmp_path / FILE).read_bytes())
    for _ in range(2):
        (tmp_path / FILE).write_bytes(damaged)
        async with desk(tmp_path) as opened:
            one = await opened.accept(task())
            assert isinstance(one, Accepted)
            assert await opened.find(one.id) is not None
    assert kept_aside(tmp_path) == [damaged, damaged]


async def test_a_log_that_was_torn_anywhere_gives_a_beginning_of_what_was_written(tmp_path: Path) -> None:
    folder, copies = tmp_path / "live", tmp_path / "copies"
    folder.mkdir()
    async with desk(folder) as opened:
        ids = [(await opened.accept(task(number))).id for number in range(40)]
        log = (folder / f"{FILE}-wal").read_bytes().rstrip(b"\0")  # without what is there for later
        chance = random.Random(7)
        found = []
        for number in range(25):
            copy = copies / str(number)
            copy.mkdir(parents=True)
            shutil.copy(folder / FILE, copy / FILE)
            rest = bytes(number % 2 * 1_000_000)  # where the log was made longer before
            (copy / f"{FILE}-wal").write_bytes(log[: chance.randrange(len(log))] + rest)
            torn = open_store(copy / FILE, "full")
            found.append([one.id for one in torn.pending()])
            torn.close()
            assert list(copy.glob("*damaged*")) == []
    assert all(part == ids[: len(part)] for part in found)
    assert max(map(len, found)) > 0


async def test_what_ended_is_kept_for_its_time_and_its_space_given_back(tmp_path: Path) -> None:
    opened = open_store(tmp_path / FILE, "full")
    with opened.transaction():
        tasks = opened.accept([task("x" * 2000) for _ in range(3000)])
        opened.finish([end(one.id, ended=1000.0) for one in tasks[10:] if isinstance(one, Accepted)])
    opened.checkpoint()
    size = (tmp_path / FILE).stat().st_size
    rounds = 1
    while opened.purge(999.0) or opened.purge(1001.0):
        rounds += 1
    while opened.vacuum():
        pass
    opened.checkpoint()
    assert rounds == 2
    assert len(list(opened.pending())) == 10
    assert (tmp_path / FILE).stat().st_size < size / 10
    opened.close()


async def test_much_space_is_given_back_by_and_by_so_that_nobody_waits_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.001)
    pages: list[int] = []
    real = Store.vacuum

    def vacuum(store: Store) -> bool:
        more = real(store)
        pages.append(store._value("PRAGMA page_count"))
        return more

    monkeypatch.setattr(Store, "vacuum", vacuum)
    async with desk(tmp_path, keep=0.0, sync="normal") as opened:
        one = await opened.accept(task("x" * (5 * store.VACUUM * 4096)))
        await opened.finish(end(one.id)).get()
        while not pages or max(pages) < 3 * store.VACUUM or pages[-1] > store.VACUUM:
            await asyncio.sleep(0.001)
    steps = [before - after for before, after in itertools.pairwise(pages)]
    assert max(steps) < 1.01 * store.VACUUM  # with pages that say which page belongs to which
    assert sum(step > 0 for step in steps) >= 3


async def test_the_thread_purges_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.001)
    async with desk(tmp_path, keep=0.0) as opened:
        one, two = await opened.accept(task()), await opened.accept(task())
        await opened.finish(end(one.id)).get()
        while await opened.find(one.id) is not None:
            await asyncio.sleep(0.001)
        assert await opened.find(two.id) is not None


async def test_the_file_gets_shorter_though_nobody_writes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path) as opened:
        tasks = await asyncio.gather(*(opened.accept(task("x" * 2000)) for _ in range(3000)))
        for one in tasks:
            opened.finish(end(one.id, ended=1000.0))
        await opened.find(tasks[0].id)
    size = (tmp_path / FILE).stat().st_size
    assert size > 4_000_000
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.01)
    async with desk(tmp_path, keep=1.0):
        while (tmp_path / FILE).stat().st_size > size / 10:
            await asyncio.sleep(0.001)


async def test_the_log_on_disk_stays_bounded(tmp_path: Path) -> None:
    async with desk(tmp_path, sync="normal") as opened:
        for _ in range(10):
            await asyncio.gather(*(opened.accept(task("x" * 2000)) for _ in range(1000)))
        assert (tmp_path / FILE).stat().st_size > 15_000_000
        assert (tmp_path / f"{FILE}-wal").stat().st_size < 2 * store.CHECKPOINT * 4096


async def test_commits_write_over_what_the_log_has_on_the_disk_already(tmp_path: Path) -> None:
    log = tmp_path / f"{FILE}-wal"
    async with desk(tmp_path) as opened:
        await opened.accept(task())
        size, used = log.stat().st_size, len(log.read_bytes().rstrip(b"\0"))
        assert size > store.CHECKPOINT * 4096
        for number in range(50):
            await opened.accept(task(number))
        assert log.stat().st_size == size
        assert len(log.read_bytes().rstrip(b"\0")) > used + 50 * 4096
        assert log.stat().st_blocks * 512 >= size  # no hole


async def test_a_log_is_not_made_longer_on_a_disk_with_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "ROOM", 1e12)
    async with desk(tmp_path) as opened:
        await opened.accept(task())
        assert (tmp_path / f"{FILE}-wal").stat().st_size < 1_000_000


# ---- a disk that takes nothing


async def limit_pages(opened: Desk, pages: int) -> None:
    """As a full disk: SQLite itself refuses to let the file grow."""
    await opened.journal.read(lambda store: list(store.db.execute(f"PRAGMA max_page_count = {pages}")))


async def test_a_full_disk_refuses_new_tasks_keeps_ends_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.01)
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        await limit_pages(opened, 1)
        refused = await opened.accept(task("x" * 100_000))
        assert isinstance(refused, JournalUnavailable)
        assert "full" in refused.message
        answers = opened.finish(end(one.id, outcome=b"y" * 100_000))
        assert isinstance(await answers.get(), JournalUnavailable)
        found = await opened.find(one.id)
        assert found is not None
        assert found.ended is None
        await limit_pages(opened, 1_000_000)
        assert await answers.get() is None
        found = await opened.find(one.id)
        assert found is not None
        assert found.outcome == b"y" * 100_000
        assert isinstance(await opened.accept(task("x" * 100_000)), Accepted)
        assert answers.empty()


async def test_an_end_is_written_although_new_tasks_do_not_fit(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        await limit_pages(opened, 1)
        refused = opened.accept(task("x" * 100_000))
        answers = opened.finish(end(one.id))
        assert isinstance(await refused, JournalUnavailable)
        assert await answers.get() is None


async def test_what_nobody_would_find_again_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal was moved while it was in use. What it has already goes on; it can be put back or copied."""
    monkeypatch.setattr(trouble, "LOOK", 0.0)
    state, aside, copy = (tmp_path / name for name in ("state", "aside", "copy"))
    state.mkdir()
    async with desk(state) as opened:
        one, two = await asyncio.gather(opened.accept(task()), opened.accept(task()))
        state.rename(aside)
        refused = await opened.accept(task())
        assert isinstance(refused, JournalUnavailable)
        assert "removed or moved" in str(refused)
        assert await opened.finish(end(one.id)).get() is None
        assert await opened.journal.backup(copy) > 0
        state.mkdir()
        copy.rename(state / FILE)  # too early: this daemon has the other one open
        assert isinstance(await opened.accept(task()), JournalUnavailable)
        (state / FILE).rename(copy)
        state.rmdir()
        aside.rename(state)
        three = await opened.accept(task())
        assert isinstance(three, Accepted)
    async with desk(state) as opened:
        await opened.recovered.wait()
        assert [row.id for row in opened.pending] == [two.id, three.id]


async def test_after_an_error_of_the_disk_the_file_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        real = Store.accept

        def broken(self: Store, tasks: Any) -> Any:
            real(self, tasks)
            raise OSError("input/output error")

        monkeypatch.setattr(Store, "accept", broken)
        assert isinstance(await opened.accept(task()), JournalUnavailable)
        monkeypatch.undo()
        two = await opened.accept(task())
        assert [row.id for row in await opened.journal.read(lambda store: store.history(9, None))] == [two.id, one.id]


# ---- kill -9

VICTIM = """
import asyncio, sys, time
from pathlib import Path
from ipc.codec import encode
from ipc.syscalls import Submit
from kernel import faults
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted, End
from kernel.journal.settings import JournalSettings

async def main():
    faults.arm()
    journal = Journal(Path(sys.argv[1]), JournalSettings(attempts=1000))
    def ended(number):
        print("ended", number, flush=True)
    def accepted(task):
        print("accepted", task.id, flush=True)
        if task.id % 3:
            end = End(task.id, time.time(), "done", "", encode(task.id))
            journal.finish(end, lambda error: ended(task.id))
        journal.accept(Accepted("echo", "ann", None, encode(Submit("echo")), time.time()), accepted)
    for _ in range(16):
        journal.accept(Accepted("echo", "ann", None, encode(Submit("echo")), time.time()), accepted)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_no_kill_at_any_instant_loses_what_was_answered(tmp_path: Path, trial: Callable[..., int]) -> None:
    chance = random.Random(20261124)
    acknowledged: set[int] = set()
    ended: set[int] = set()
    for _ in range(trial(short=6, long=300)):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, tmp_path], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert victim.stdout is not None
        lines = [victim.stdout.readline()]
        killer = threading.Timer(chance.random() * 0.1, victim.send_signal, [signal.SIGKILL])
        killer.start()
        lines += victim.stdout.read().splitlines()
        killer.join()
        victim.wait()
        victim.stdout.close()
        for line in lines:
            what, _, number = line.strip().partition(" ")
            if number:
                (acknowledged if what == "accepted" else ended).add(int(number))
        opened = open_store(tmp_path / FILE, "full")
        rows = {row.id: row for row in opened.history(10_000_000, None)}
        opened.close()
        # The last line may be cut in the middle of a number, which is then none of a task.
        assert len(acknowledged - rows.keys()) <= 1
        acknowledged &= rows.keys()
        assert all(rows[number].ended is not None for number in ended if number in rows)
        ended &= rows.keys()
    assert list(tmp_path.glob("*damaged*")) == []
    assert len(acknowledged) > 100
    assert len(ended) > 50
