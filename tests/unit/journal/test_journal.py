"""The journal alone: an acknowledged task survives any death of the daemon, and no error of the disk is silent."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc.errors import JournalUnavailable, KeyReused, StateInUse
from kernel.journal import changes, histories, store
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask, TaskRow
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store, open_store
from tests.support.journal_desk import VICTIM, accepted, crash, desk, end, task

pytestmark = pytest.mark.real_time


# ---- tasks and their ends


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
    """The instructions of SQLite's virtual machine for a start on `tasks` durable tasks, and for the end of one."""
    folder.mkdir()
    opened = open_store(folder / FILE, "normal")
    with opened.transaction():
        rows = [msgspec.structs.replace(task(), pid=1 + 2 * number) for number in range(tasks)]
        opened.accept(rows)
        for row in rows:
            child = changes.PutProcess(row.pid + 1, row.id, row.pid, "child", "", True)
            opened.apply([child, changes.PutCall(row.pid, 0, "0", 0, b"", b""), changes.PutName(f"{row.pid}", row.pid)])
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
        "run": counted(lambda: opened.begin_run(5)),
        "out of attempts": counted(lambda: opened.out_of_attempts(3)),
        "ended": counted(lambda: histories.forget_ended(opened)),
        "state": counted(lambda: histories.recover_state(opened)),
        "pending": counted(lambda: list(opened.pending())),
        "load": counted(lambda: histories.load(opened, [number])) * tasks,
        "child": counted(lambda: opened.apply([changes.ChildEnded(pid + 1, b"")])) * tasks,
        "checkpoint": counted(lambda: opened.apply([changes.Checkpointed(pid, 2, b"", b"")])) * tasks,
        "end": counted(lambda: opened.apply([changes.TaskEnded(number)])) * tasks,
        "finish": counted(lambda: opened.finish([end(row.id, ended=1.0) for row in rows])),
        "purge": counted(lambda: opened.purge(2.0)),
    }
    opened.close()
    return taken


def test_what_a_start_and_an_end_take_grows_no_faster_than_what_is_pending(tmp_path: Path) -> None:
    few, many = instructions(tmp_path / "few", 100), instructions(tmp_path / "many", 400)
    assert {name: taken for name, taken in many.items() if taken > 5 * few[name] + 100} == {}


async def test_a_clock_that_is_centuries_ahead_uses_up_no_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, real = [], time.time
    async with desk(tmp_path) as opened:
        for years in (0, 100, 300, 0):
            monkeypatch.setattr(store.time, "time", lambda ahead=years * 31_557_600: real() + ahead)
            ids += [(await opened.accept(task())).id for _ in range(2)]
        assert ids == sorted(set(ids))
        assert ids[-1] < store.MAX_ID


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
        assert isinstance(twin, TaskRow)
        assert twin.id == first.id
        assert isinstance(other, KeyReused)
        bob = await opened.accept(task(2, "k", owner="bob"))
        assert isinstance(bob, AcceptedTask)
        await opened.finish(end(first.id)).get()
    async with desk(tmp_path) as opened:
        again = await opened.accept(task(1, "k"))
        assert (again.id, again.outcome) == (first.id, b"result")
        assert isinstance(await opened.accept(task(1, "k", program="ask")), KeyReused)


async def test_a_key_that_an_earlier_version_stored_under_the_name_of_the_client_is_still_found(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        old = await opened.accept(task(1, "k", owner="llmos"))
        new = task(1, "k", owner="ann")
        new.former_owner = "llmos"
        found = await opened.accept(new)
        assert (type(found), found.id) == (TaskRow, old.id)
        assert isinstance(await opened.accept(task(1, "k", owner="ann")), AcceptedTask)


async def test_history_is_newest_first_and_goes_on_where_a_page_ended(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        ids = [(await opened.accept(task(number))).id for number in range(5)]
        page = await opened.journal.read(lambda store: store.history(2, None))
        assert [one.id for one in page] == [ids[4], ids[3]]
        page = await opened.journal.read(lambda store: store.history(10, ids[3]))
        assert [one.id for one in page] == [ids[2], ids[1], ids[0]]


# ---- group commit


async def test_a_key_finds_the_end_that_the_same_transaction_writes(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        first = await opened.accept(task(key="report"))
        ended = opened.finish(end(first.id, "done", b"its end"))
        again = await opened.accept(task(key="report"))
        assert await ended.get() is None
        assert (again.id, again.reason, again.outcome) == (first.id, "done", b"its end")


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
            await asyncio.sleep(0)  # if the loop waited for the disk, this would never return
        assert not first.done()
        reader.cancel()
        second = opened.accept(task(2))
        slow.set()
        assert (await first).id < (await second).id
        assert reader.cancelled()


# ---- runs of the daemon


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
        assert found.attempt == 5  # no further attempt was begun


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


# ---- kill -9


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
        # The last line may be cut off within a number, which is then no id of a task.
        assert len(acknowledged - rows.keys()) <= 1
        acknowledged &= rows.keys()
        assert all(rows[number].ended is not None for number in ended if number in rows)
        ended &= rows.keys()
    assert list(tmp_path.glob("*damaged*")) == []
    assert len(acknowledged) > 100
    assert len(ended) > 50
