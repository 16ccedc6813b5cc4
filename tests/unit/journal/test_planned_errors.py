"""Errors of every class at each point of the journal's thread: it survives, loses nothing, and answers each request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.codec import encode
from ipc.errors import JournalUnavailable, LlmosError, NotStorable
from kernel.journal import writer
from kernel.journal.changes import PutMemory
from kernel.journal.records import AcceptedTask, TaskRow
from kernel.journal.settings import FILE
from kernel.lib import failpoints
from tests.support.journal_desk import Desk, accepted, desk, end, task

pytestmark = pytest.mark.real_time

OF_THE_DISK = ["ENOSPC", "EIO", "EROFS", "EACCES", "EMFILE", "EINTR", "EINVAL", "ENOENT", "ENOMEM"]
ERRORS = [*failpoints.ERRORS, *failpoints.SQLITE, *OF_THE_DISK]
DAMAGE = ["SQLITE_CORRUPT", "SQLITE_NOTADB"]  # at a start, these say that the file is damaged
AT_THE_START = ["journal.open", "journal.recover", "journal.extend"]
WHILE_IT_RUNS = ["journal.begin", "journal.apply", "journal.commit", "journal.committed", "journal.answer"]
AT_A_PURGE = ["journal.purge", "journal.vacuum"]
AT_THE_STOP = ["journal.checkpoint", "journal.close"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, disarmed: None) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.001)


def arm(text: str) -> None:
    failpoints.arm({failpoints.VARIABLE: text})


def chosen(count: int) -> list[str]:
    """At most `count` errors: one of each kind, and others at random."""
    first = ["TypeError", "MemoryError", "SQLITE_NOMEM", "SQLITE_CONSTRAINT", "SQLITE_IOERR", "EIO"]
    others = [one for one in ERRORS if one not in first]
    return [*first, *random.Random(count).sample(others, len(others))][:count]


class Requests:
    """Requests of each kind, each with all its answers."""

    def __init__(self, opened: Desk, running: AcceptedTask) -> None:
        self.new = [opened.accept(task(number, key=f"{running.id} {number}")) for number in range(2)]
        self.end = opened.finish(end(running.id, outcome=encode("the result")))
        self.change: asyncio.Queue[Any] = asyncio.Queue()
        opened.journal.persist([PutMemory(1, "key", b"value")], self.change.put_nowait)
        self.read = asyncio.ensure_future(opened.journal.read(lambda store: "read"))

    async def answered(self, opened: Desk) -> None:
        """Return when all have their last answer, and check that the journal has what it acknowledged."""
        assert await self.read == "read"
        for answers in (self.end, self.change):
            if isinstance(answer := await answers.get(), JournalUnavailable):
                answer = await answers.get()
            assert answer is None or isinstance(answer, NotStorable)
        for one in await asyncio.gather(*self.new):
            assert isinstance(one, AcceptedTask | JournalUnavailable | NotStorable)
            assert not isinstance(one, AcceptedTask) or isinstance(await opened.find(one.id), TaskRow)


@pytest.mark.soak
@pytest.mark.parametrize("point", WHILE_IT_RUNS)
def test_an_error_of_any_class_in_a_transaction_leaves_no_request_without_an_answer(
    tmp_path: Path, point: str, trial: Callable[..., int]
) -> None:
    asyncio.run(_fail_in_a_transaction(tmp_path, point, chosen(trial(short=12, long=len(ERRORS)))))


async def _fail_in_a_transaction(folder: Path, point: str, errors: list[str]) -> None:
    async with desk(folder, sync="normal") as opened:
        await opened.recovered.wait()
        for error in errors:
            for passes in ("@1", "@1-2", "@2-4"):
                running = await opened.accept(task(error))
                arm(f"{point}={error}{passes}")
                await Requests(opened, running).answered(opened)
                failpoints.disarm()
                found = await opened.find(running.id)
                assert found is not None
                assert found.ended is not None
                assert found.error in ("", "NotStorable")
                assert isinstance(await opened.accept(task(error, key=f"{error} {passes}")), AcceptedTask)
        assert not opened.failure.done()


@pytest.mark.soak
@pytest.mark.parametrize("point", AT_A_PURGE)
def test_an_error_of_any_class_in_a_purge_ends_nothing(
    tmp_path: Path, point: str, trial: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.001)
    asyncio.run(_fail_in_a_purge(tmp_path, point, chosen(trial(short=8, long=len(ERRORS)))))


async def _fail_in_a_purge(folder: Path, point: str, errors: list[str]) -> None:
    async with desk(folder, sync="normal", keep=0.0) as opened:
        for error in errors:
            running = await opened.accept(task(error))
            arm(f"{point}={error}@1-2")
            assert await opened.finish(end(running.id, ended=1.0)).get() is None
            while await opened.find(running.id) is not None:
                await asyncio.sleep(0.001)
            failpoints.disarm()
        assert not opened.failure.done()


async def test_an_error_in_a_purge_does_not_make_the_thread_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    real = writer.Writer._next_batch

    def counted(one: writer.Writer) -> Any:
        nonlocal passes
        passes += 1
        return real(one)

    monkeypatch.setattr(writer.Writer, "_next_batch", counted)
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.05)
    monkeypatch.setattr(writer, "LEAST_PURGE", 0.05)
    purges = tmp_path / "broken"
    purges.touch()
    arm(f"journal.purge=EIO?{purges}")
    async with desk(tmp_path, keep=0.05) as opened:
        await opened.recovered.wait()
        began, before = time.monotonic(), passes
        while failpoints._faults["journal.purge"][0].count < 6:
            await asyncio.sleep(0.001)
        assert passes - before <= 3 + (time.monotonic() - began) / 0.05  # one for each purge
        purges.unlink()
        assert isinstance(await opened.accept(task()), AcceptedTask)


@pytest.mark.soak
@pytest.mark.parametrize("point", [*AT_THE_START, *AT_THE_STOP])
def test_an_error_of_any_class_at_a_start_or_stop_changes_no_task(
    tmp_path: Path, point: str, trial: Callable[..., int]
) -> None:
    errors = [one for one in chosen(trial(short=4, long=len(ERRORS))) if one not in DAMAGE]
    asyncio.run(_fail_at_a_start_or_stop(tmp_path, point, errors))
    assert not list(tmp_path.glob(f"{FILE}.damaged*"))


async def _fail_at_a_start_or_stop(folder: Path, point: str, errors: list[str]) -> None:
    before = {one.id for one in await accepted(folder, task(1), task(2))}
    sync = "full" if point == "journal.extend" else "normal"
    for error in errors:
        arm(f"{point}={error}")
        async with desk(folder, attempts=1000, sync=sync) as opened:
            answer = await opened.accept(task(error))
            if isinstance(answer, AcceptedTask):
                before.add(answer.id)
            else:
                assert isinstance(answer, LlmosError)
                assert point in AT_THE_START
        failpoints.disarm()
        async with desk(folder, attempts=1000, sync="normal") as opened:
            await opened.recovered.wait()
            assert {one.id for one in opened.pending} == before
