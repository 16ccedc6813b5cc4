"""Damaged rows in a sound file: each costs only its own task, and the journal starts with all others."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from ipc.codec import encode
from ipc.errors import HistoryDamaged, JournalUnavailable
from kernel.journal import histories, writer
from kernel.journal.changes import (
    PROCESS_TABLES,
    Change,
    HighestIds,
    PutCall,
    PutGeneration,
    PutLastDelivered,
    PutMemory,
    PutMessage,
    PutName,
    PutRegion,
    PutReply,
    PutSubscription,
)
from kernel.journal.records import AcceptedTask
from kernel.journal.schema import MIGRATIONS
from kernel.journal.settings import FILE
from kernel.tasks import summaries
from tests.support.journal_desk import Desk, desk, end, task

pytestmark = pytest.mark.real_time

TABLES = ("tasks", "processes", *PROCESS_TABLES, "regions", "counters", "stops")
ODD = {
    "NULL": "NULL",
    "negative": "-1",
    "huge": str(2**63 - 1),
    "fraction": "1.5",
    "infinite": "9e999",
    "text": "'odd'",
    "bytes": "x'00ff'",
    "undecodable": "CAST(x'6f6464ff' AS TEXT)",
}
FIRST_PID, SECOND_PID = 11, 12
# The condition for the row that is damaged, in the tables whose rows do not belong to a process.
WHERE = {"tasks": "program = 'first'", "regions": "name = 'region 1'", "counters": "1", "stops": "1"}


def rows_of(pid: int) -> list[Change]:
    """A row in each table of processes."""
    return [
        PutCall(pid, 0, "main", 0, b"call", b"outcome"),
        PutGeneration(pid, 0, "main", 1, 0, b"state", True),
        PutMessage(pid, 100 + pid, 2e9, b"envelope"),
        PutLastDelivered(pid, 99, "main", 0, 3),
        PutReply(200 + pid, pid, b"body"),
        PutMemory(pid, "key", b"value"),
        PutName(f"name {pid}", pid),
        PutSubscription(pid, f"news.{pid}"),
    ]


async def write_template(folder: Path) -> dict[str, int]:
    """A stopped journal with tasks at every stage. Returns the ids of the tasks by program."""
    async with desk(folder, sync="normal") as opened:
        tasks = [task(name, key=f"key {name}", program=name) for name in ("first", "second", "plain", "ended")]
        for one, pid in zip(tasks, (FIRST_PID, SECOND_PID), strict=False):
            one.pid, one.version = pid, "1"
        accepted = await asyncio.gather(*map(opened.accept, tasks))
        await opened.finish(end(accepted[3].id, outcome=encode("the result"))).get()
        for pid in (FIRST_PID, SECOND_PID):
            await persist(opened, *rows_of(pid))
        await persist(opened, HighestIds(pid=20, message=300))
        await persist(opened, PutRegion("region 1", 5, "ann", b"\x01"), PutRegion("region 2", 6, "ann", b"\x02"))
        return {one.program: one.id for one in accepted}


async def persist(opened: Desk, *changes: Change) -> None:
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    opened.journal.persist(changes, answered.set_result)
    assert await answered is None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("template")
    return folder, asyncio.run(write_template(folder))


@contextlib.contextmanager
def opened_file(folder: Path) -> Iterator[apsw.Connection]:
    with contextlib.closing(apsw.Connection(str(folder / FILE))) as db:
        yield db


def columns(table: str) -> list[str]:
    with contextlib.closing(apsw.Connection(":memory:")) as db:
        for step in MIGRATIONS:
            db.execute(step)
        return [str(name) for (name,) in db.execute(f"SELECT name FROM pragma_table_info('{table}')")]


def damage(folder: Path, table: str, column: str, value: str) -> bool:
    """Write `value` as a disk would that damages the row: without the checks of the table. False if SQLite refuses."""
    with opened_file(folder) as db:
        (sql,) = next(iter(db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))))
        _rewrite(db, table, str(sql).replace(" STRICT", "").replace("NOT NULL", ""))
        try:
            db.execute(f"UPDATE {table} SET {column} = {value} WHERE {WHERE.get(table, f'pid = {FIRST_PID}')}")
            changed = bool(db.changes())
        except apsw.Error:
            changed = False
        _rewrite(db, table, str(sql))
    return changed


def _rewrite(db: apsw.Connection, table: str, sql: str) -> None:
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
    db.execute("PRAGMA writable_schema = RESET")


CASES = [(table, column, kind) for table in TABLES for column in columns(table) for kind in ODD]
# Cases of each kind that must not stop a start; the others are drawn at random.
ONCE = [
    ("tasks", "program", "undecodable"),
    ("tasks", "call", "NULL"),
    ("tasks", "attempt", "huge"),
    ("tasks", "submitted", "text"),
    ("tasks", "id", "huge"),
    ("processes", "parent", "negative"),
    ("processes", "task", "negative"),
    ("calls", "thread", "undecodable"),
    ("calls", "outcome", "text"),
    ("generations", "thread", "undecodable"),
    ("names", "name", "undecodable"),
    ("regions", "owner", "undecodable"),
    ("counters", "pid", "huge"),
    ("stops", "late", "huge"),
]


async def check_all_but_the_first(folder: Path, ids: dict[str, int]) -> None:
    """Run the journal twice. All tasks but the first must be as they were, and new ones are accepted."""
    for again in (False, True):
        async with desk(folder, sync="normal", attempts=1000) as opened:
            opened.failure.add_done_callback(lambda _: opened.recovered.set())
            await opened.recovered.wait()
            assert not opened.failure.done(), opened.failure.result()
            pending = {one.id: one for one in opened.pending}
            for name in ("plain",) if again else ("second", "plain"):
                assert (pending[ids[name]].program, pending[ids[name]].key) == (name, f"key {name}")
            # Without its history, the first task would repeat its effects.
            assert all(one.pid for one in opened.pending if one.program == "first")
            rows = await opened.journal.read(partial(summaries.read, limit=100, before=None))
            assert len(rows) == 4 + again
            done = await opened.find(ids["ended"])
            assert done is not None
            assert done.outcome == encode("the result")
            loaded = await opened.journal.read(partial(histories.load, tasks=[ids["first"], ids["second"]]))
            if not again:
                (second,) = loaded[ids["second"]]
                assert [len(getattr(second, part)) for part, _, _ in histories.PARTS] == [1] * len(histories.PARTS)
                assert await opened.finish(end(ids["second"])).get() is None
            assert isinstance(await opened.accept(task(again)), AcceptedTask)
            await persist(opened, HighestIds(pid=21), PutMemory(SECOND_PID, "key", b"another value"))
            assert await opened.journal.read(lambda store: store.purge(1.0)) is False


@pytest.mark.soak
def test_an_odd_value_in_any_column_of_a_row_costs_no_other_task(
    template: tuple[Path, dict[str, int]], tmp_path: Path, trial: Callable[..., int]
) -> None:
    source, ids = template
    tried = 0
    count = trial(short=12, long=len(CASES))
    for case in [*ONCE, *random.Random(17).sample(CASES, count)]:
        folder = tmp_path / " ".join(case)
        if folder.exists():
            continue
        shutil.copytree(source, folder)
        table, column, kind = case
        if not damage(folder, table, column, ODD[kind]):
            continue  # SQLite itself does not store it, such as a text as the id of a row
        try:
            asyncio.run(check_all_but_the_first(folder, ids))
            assert not list(folder.glob("*damaged*"))
        except Exception as error:
            error.add_note(f"damaged: {column} of {table} is {kind}")
            raise
        tried += 1
    assert tried > len(ONCE)


async def test_a_damaged_task_has_ended_with_an_error_and_stays_in_the_history(
    template: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    source, ids = template
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    assert damage(tmp_path, "tasks", "program", ODD["undecodable"])
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        found = await opened.find(ids["first"])
        assert found is not None
        assert (found.program, found.reason, found.error) == ("odd\\xff", "failed", "HistoryDamaged")
        assert b"not UTF-8" in found.outcome


@pytest.mark.parametrize(
    ("table", "column", "kind"),
    [
        ("tasks", "id", "negative"),
        ("tasks", "key", "bytes"),
        ("processes", "pid", "negative"),
        ("processes", "task", "negative"),
        ("processes", "parent", "huge"),
        ("processes", "epoch", "huge"),
        ("calls", "outcome", "text"),
    ],
)
async def test_a_durable_task_never_runs_again_without_its_history(
    template: tuple[Path, dict[str, int]], tmp_path: Path, table: str, column: str, kind: str
) -> None:
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    assert damage(tmp_path, table, column, ODD[kind])
    async with desk(tmp_path, sync="normal") as opened:
        await opened.recovered.wait()
        assert "first" not in [one.program for one in opened.pending]
        rows = await opened.journal.read(lambda store: store.history(9, None))
        assert [row.error for row in rows if row.program == "first"] == ["HistoryDamaged"]


@pytest.mark.parametrize(
    ("table", "column", "kind"),
    [("memory", "key", "undecodable"), ("calls", "epoch", "huge"), ("calls", "number", "negative")],
)
async def test_a_damaged_row_of_a_history_is_an_error_of_its_task_alone(
    template: tuple[Path, dict[str, int]], tmp_path: Path, table: str, column: str, kind: str
) -> None:
    source, ids = template
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    assert damage(tmp_path, table, column, ODD[kind])
    async with desk(tmp_path) as opened:
        loaded = await opened.journal.read(partial(histories.load, tasks=[ids["first"], ids["second"]]))
        assert isinstance(loaded[ids["first"]], HistoryDamaged)
        assert [row.pid for row in loaded[ids["second"]]] == [SECOND_PID]


# ---- indexes that do not fit their rows, of which the quick check reports nothing


def stale_index(folder: Path, index: str, change: str) -> None:
    """Make `change` without the index."""
    with opened_file(folder) as db:
        (row,) = list(
            db.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?", (index,))
        )
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
        db.execute("PRAGMA writable_schema = RESET")
        db.execute(change)
        db.execute("PRAGMA writable_schema = ON")
        db.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", row)
        db.execute("PRAGMA writable_schema = RESET")
        assert list(db.execute("PRAGMA quick_check")) == [("ok",)]
        assert list(db.execute("PRAGMA integrity_check")) != [("ok",)]


async def test_a_stale_index_stops_neither_a_start_nor_an_end_nor_a_purge(
    template: tuple[Path, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.001)
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.01)
    source, ids = template
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    stale_index(tmp_path, "finished", f"UPDATE tasks SET ended = 7.0 WHERE id = {ids['ended']}")
    stale_index(tmp_path, "calls_of_process", f"UPDATE calls SET pid = 500 WHERE pid = {FIRST_PID}")
    stale_index(tmp_path, "keys", f"UPDATE tasks SET key = 'other' WHERE id = {ids['plain']}")
    async with desk(tmp_path, keep=1.0) as opened:
        await opened.recovered.wait()
        answers = opened.finish(end(ids["second"]))
        while (answer := await answers.get()) is not None:
            assert isinstance(answer, JournalUnavailable)
        while await opened.find(ids["ended"]) is not None:  # until a purge has deleted it
            await asyncio.sleep(0.001)
        assert not opened.failure.done()
        assert isinstance(await opened.accept(task()), AcceptedTask)
