"""The file of the journal: its versions, damage to it, and the disk space that it and its WAL take."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from ipc.errors import JournalUnavailable, StateTooNew
from kernel.journal import schema, store, wal, writer
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE
from kernel.journal.store import Store, open_store
from tests.support.journal_desk import accepted, desk, end, task

pytestmark = pytest.mark.real_time


# ---- versions and damage


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


def paths_set_aside(folder: Path) -> list[Path]:
    """The damaged journals that were set aside, without their WAL files."""
    return [path for path in folder.glob(f"{FILE}.damaged-*") if not path.name.endswith(("-shm", "-wal"))]


def set_aside(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in paths_set_aside(folder)]


async def test_a_database_of_another_program_is_kept_aside_and_not_written_into(tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / FILE))) as db:
        db.execute("CREATE TABLE tasks (theirs); INSERT INTO tasks VALUES (5)")
    async with desk(tmp_path) as opened:
        assert isinstance(await opened.accept(task()), AcceptedTask)
    (aside,) = paths_set_aside(tmp_path)
    with contextlib.closing(apsw.Connection(str(aside))) as db:
        assert list(db.execute("SELECT * FROM tasks")) == [(5,)]
        assert list(db.execute("SELECT count(*) FROM sqlite_schema")) == [(1,)]


def scribble(data: bytes) -> bytes:
    """`data` with garbage over all pages but the first."""
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
            assert isinstance(one, AcceptedTask)
            assert await opened.find(one.id) is not None
    assert set_aside(tmp_path) == [damaged, damaged]


async def test_a_log_that_was_torn_anywhere_gives_a_beginning_of_what_was_written(tmp_path: Path) -> None:
    folder, copies = tmp_path / "live", tmp_path / "copies"
    folder.mkdir()
    async with desk(folder) as opened:
        ids = [(await opened.accept(task(number))).id for number in range(40)]
        log = (folder / f"{FILE}-wal").read_bytes().rstrip(b"\0")  # without the preallocated rest
        chance = random.Random(7)
        found = []
        for number in range(25):
            copy = copies / str(number)
            copy.mkdir(parents=True)
            shutil.copy(folder / FILE, copy / FILE)
            rest = bytes(number % 2 * 1_000_000)  # half of the WALs are preallocated
            (copy / f"{FILE}-wal").write_bytes(log[: chance.randrange(len(log))] + rest)
            torn = open_store(copy / FILE, "full")
            found.append([one.id for one in torn.pending()])
            torn.close()
            assert list(copy.glob("*damaged*")) == []
    assert all(part == ids[: len(part)] for part in found)
    assert max(map(len, found)) > 0


# ---- space


async def test_what_ended_is_kept_for_its_time_and_its_space_given_back(tmp_path: Path) -> None:
    opened = open_store(tmp_path / FILE, "full")
    with opened.transaction():
        tasks = opened.accept([task("x" * 2000) for _ in range(3000)])
        opened.finish([end(one.id, ended=1000.0) for one in tasks[10:] if isinstance(one, AcceptedTask)])
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
    assert max(steps) < 1.01 * store.VACUUM  # with the pages of SQLite's pointer map
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
        assert log.stat().st_blocks * 512 >= size  # no hole in the file


async def test_a_log_is_not_made_longer_on_a_disk_with_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "FREE_FACTOR", 1e12)
    async with desk(tmp_path) as opened:
        await opened.accept(task())
        assert (tmp_path / f"{FILE}-wal").stat().st_size < 1_000_000
