"""A request that the journal cannot store costs only itself and its own task; all others of its batch are on disk."""

from __future__ import annotations

import array
import asyncio
import decimal
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from ipc.codec import encode
from ipc.errors import JournalUnavailable, NotStorable
from kernel.journal import writer
from kernel.journal.changes import Change, PutCall, PutMemory, PutMessage, PutProcess
from kernel.journal.records import AcceptedTask, TaskEnd
from kernel.journal.store import Store
from kernel.lib import failpoints
from tests.support.journal_desk import Desk, desk, end, task

pytestmark = [pytest.mark.real_time, pytest.mark.usefixtures("disarmed")]

LIMIT = 50_000  # bytes of a value, in these tests


class Text(str):
    """A look-alike of `str`."""


# Values that no column takes, or only a column of another type. An array is passed as bytes, as numpy's integers are.
ODD: list[Any] = [
    decimal.Decimal(5),
    array.array("q", [5]),
    1 << 70,
    "half of a pair: \ud800",
    Text("text"),
    float("nan"),
    object(),
    ["a list"],
    b"long" * LIMIT,
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.001)


def persist(opened: Desk, *changes: Change) -> asyncio.Future[Any]:
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    opened.journal.persist(changes, answered.set_result)
    return answered


async def limit_values(opened: Desk) -> None:
    await opened.journal.read(lambda store: store.db.limit(apsw.SQLITE_LIMIT_LENGTH, LIMIT))


async def durable_task(opened: Desk, pid: int) -> AcceptedTask:
    one = task(pid, program="durable")
    one.pid, one.version = pid, "1"
    accepted: AcceptedTask = await opened.accept(one)
    return accepted


async def test_an_odd_value_in_a_change_ends_its_task_and_the_rest_of_the_batch_is_on_disk(tmp_path: Path) -> None:
    pids = itertools.count(1)
    async with desk(tmp_path, sync="normal") as opened:
        await limit_values(opened)
        expected: dict[int, str | None] = {}
        for value in ODD:
            guilty, innocent = await durable_task(opened, next(pids)), await durable_task(opened, next(pids))
            key = f"{len(expected)}"
            before, odd, after = (
                persist(opened, PutMemory(innocent.pid, "before", b"value")),
                persist(
                    opened, PutCall(guilty.pid, 0, "main", 0, b"call", b""), PutMemory(guilty.pid, value, b"value")
                ),
                persist(opened, PutMemory(innocent.pid, "after", b"value")),
            )
            new = opened.accept(task(key, key=key))
            assert [await before, await after] == [None, None]
            assert isinstance(await odd, NotStorable)
            expected |= {guilty.id: "NotStorable", innocent.id: "", (await new).id: ""}
        for number, error in expected.items():
            found = await opened.find(number)
            assert found is not None
            assert (found.error, found.ended is None) == (error, not error)
        rows = await opened.journal.read(lambda store: list(store.db.execute("SELECT key FROM memory")))
        assert sorted(rows) == sorted([("before",), ("after",)] * len(ODD))
        assert await opened.journal.read(lambda store: list(store.db.execute("SELECT count(*) FROM calls"))) == [(0,)]
        assert not opened.failure.done()
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        assert {one.id for one in opened.pending} == {number for number, error in expected.items() if not error}


async def test_an_odd_value_in_a_task_refuses_it_and_its_key_stays_free(tmp_path: Path) -> None:
    async with desk(tmp_path, sync="normal") as opened:
        await limit_values(opened)
        for number, value in enumerate(ODD):
            odd = task(number, key=f"key {number}")
            odd.program = value
            refused, good = opened.accept(odd), opened.accept(task(number))
            assert isinstance(await refused, NotStorable)
            assert isinstance(await good, AcceptedTask)
            assert isinstance(await opened.accept(task(number, key=f"key {number}")), AcceptedTask)
        rows = await opened.journal.read(lambda store: store.history(100, None))
        assert len(rows) == 2 * len(ODD)


async def test_an_end_that_cannot_be_stored_is_stored_as_this_error(tmp_path: Path) -> None:
    async with desk(tmp_path, sync="normal") as opened:
        await limit_values(opened)
        for value in ODD:
            one, two = await opened.accept(task()), await opened.accept(task())
            bad, good = opened.finish(TaskEnd(one.id, 5.0, "failed", value, b"outcome")), opened.finish(end(two.id))
            assert isinstance(await bad.get(), NotStorable)
            assert await good.get() is None
            first, second = await opened.find(one.id), await opened.find(two.id)
            assert first is not None
            assert second is not None
            assert (first.reason, first.error, second.reason) == ("failed", "NotStorable", "done")
            assert bad.empty()


async def test_a_message_that_cannot_be_stored_ends_no_task_of_its_recipient(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        recipient = await durable_task(opened, 1)
        envelope: Any = decimal.Decimal(1)
        assert isinstance(await persist(opened, PutMessage(1, 7, None, envelope)), NotStorable)
        found = await opened.find(recipient.id)
        assert found is not None
        assert found.ended is None


async def test_changes_of_a_child_that_cannot_be_stored_end_the_task_of_its_parent(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        parent = await durable_task(opened, 1)
        version: Any = decimal.Decimal(1)
        assert isinstance(await persist(opened, PutProcess(2, parent.id, 1, "child", version, True)), NotStorable)
        found = await opened.find(parent.id)
        assert found is not None
        assert found.error == "NotStorable"


@pytest.mark.parametrize("error", ["MemoryError", "SQLITE_NOMEM", "SQLITE_TOOBIG"])
async def test_only_the_request_that_fails_again_by_itself_is_refused(tmp_path: Path, error: str) -> None:
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        # The first pass is that of the whole transaction; the third is that of the second request by itself.
        failpoints.arm({failpoints.VARIABLE: f"journal.apply={error}@1 journal.apply={error}@3"})
        first, second, third = (opened.accept(task(number)) for number in range(3))
        assert isinstance(await first, AcceptedTask)
        assert isinstance(await second, NotStorable)
        assert isinstance(await third, AcceptedTask)


async def test_an_error_that_no_request_causes_is_treated_as_one_of_the_disk(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    failpoints.arm({failpoints.VARIABLE: f"journal.commit=KeyError?{broken}"})
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        broken.touch()
        refused, answers = opened.accept(task()), opened.finish(end(one.id, outcome=encode("the result")))
        assert isinstance(await refused, JournalUnavailable)
        assert isinstance(await answers.get(), JournalUnavailable)
        broken.unlink()
        assert await answers.get() is None


async def test_a_transaction_that_sqlite_gives_up_is_written_without_the_guilty_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some errors, such as a lack of memory, SQLite itself rolls the whole transaction back."""
    real: Callable[..., Any] = Store.accept

    def giving_up(store: Store, tasks: Any) -> Any:
        if any(one.program == "guilty" for one in tasks):
            if store.db.in_transaction:
                store.db.execute("ROLLBACK")
            raise apsw.NoMemError("out of memory")
        return real(store, tasks)

    monkeypatch.setattr(Store, "accept", giving_up)
    async with desk(tmp_path) as opened:
        first, second, third = (opened.accept(task(program=name)) for name in ("first", "guilty", "third"))
        assert [type(await one) for one in (first, second, third)] == [AcceptedTask, NotStorable, AcceptedTask]
        rows = await opened.journal.read(lambda store: store.history(9, None))
        assert sorted(row.program for row in rows) == ["first", "third"]


@pytest.mark.parametrize("point", ["journal.commit", "journal.committed"])
async def test_an_error_of_the_disk_beside_one_of_a_value_is_not_taken_for_the_value(
    tmp_path: Path, point: str
) -> None:
    """Otherwise the rows would be written twice, or by a connection that cannot be trusted after the error."""
    async with desk(tmp_path) as opened:
        running = await opened.accept(task(0))
        # The first pass of `apply` is that of the whole transaction; the second is that of the first request by itself.
        failpoints.arm({failpoints.VARIABLE: f"journal.apply=TypeError@1-2 {point}=EIO@1"})
        first, second, ended = opened.accept(task(1)), opened.accept(task(2)), opened.finish(end(running.id))
        assert isinstance(await first, JournalUnavailable)
        assert isinstance(await second, JournalUnavailable)
        assert await ended.get() is None
        third = await opened.accept(task(3))
        rows = await opened.journal.read(lambda store: store.history(9, None))
        assert [row.id for row in rows] == [third.id, running.id]
