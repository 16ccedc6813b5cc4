"""The journal on a disk that fails on purpose: it has each acknowledged task, no refused one, and recovers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import JournalUnavailable
from kernel.journal import writer
from kernel.journal.changes import PutMessage
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE
from kernel.lib import failpoints
from tests.support.journal_desk import VICTIM, Desk, accepted, desk, end, task

pytestmark = pytest.mark.real_time

EVERY_STEP = [
    "journal.begin=EIO",
    "journal.commit=EIO",
    "journal.committed=EIO",
    "journal.commit=ENOSPC",
    "disk.write.log=ENOSPC",
    "disk.write.log=short",
    "disk.write.log=EROFS",
    "disk.write.log=EIO",
    "disk.sync.log=EIO",
    "disk.sync.log=ENOSPC",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, disarmed: None) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.01)


def arm(text: str) -> None:
    failpoints.arm({failpoints.VARIABLE: text})


def damaged(folder: Path) -> list[Path]:
    return list(folder.glob("*damaged*"))


async def ids(opened: Desk) -> list[int]:
    return sorted([row.id for row in await opened.journal.read(lambda store: store.history(100, None))])


@pytest.mark.parametrize("fault", EVERY_STEP)
async def test_a_disk_that_fails_at_any_step_loses_nothing_keeps_nothing_it_refused_and_heals(
    tmp_path: Path, fault: str
) -> None:
    broken = tmp_path / "broken"
    arm(f"{fault}?{broken}")
    async with desk(tmp_path) as opened:
        good = [await opened.accept(task(number)) for number in range(3)]
        broken.touch()
        refused = [await opened.accept(task(number, key=f"refused {number}")) for number in range(3)]
        answers = opened.finish(end(good[0].id, outcome=b"the end"))
        assert isinstance(await answers.get(), JournalUnavailable)
        broken.unlink()
        assert all(isinstance(one, JournalUnavailable) for one in refused)
        assert await answers.get() is None
        good.append(await opened.accept(task(4)))
        assert await ids(opened) == [one.id for one in good]
    async with desk(tmp_path) as opened:  # as the next daemon would
        assert await ids(opened) == [one.id for one in good]
        await opened.recovered.wait()
        assert [one.id for one in opened.pending] == [one.id for one in good[1:]]
        found = await opened.find(good[0].id)
        assert found is not None
        assert found.outcome == b"the end"
    assert not damaged(tmp_path)


async def test_a_log_that_cannot_be_made_longer_is_written_all_the_same(tmp_path: Path) -> None:
    arm("journal.extend=EIO")
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        assert isinstance(one, AcceptedTask)
        assert (tmp_path / f"{FILE}-wal").stat().st_size < 1_000_000
        assert await ids(opened) == [one.id]


async def test_a_commit_that_failed_and_is_on_the_disk_is_taken_back_before_its_key_is_used_again(
    tmp_path: Path,
) -> None:
    await accepted(tmp_path)  # so that the tables exist
    arm("journal.committed=EIO@2")  # after the transaction that begins the run
    async with desk(tmp_path) as opened:
        refused = await opened.accept(task(1, key="one"))
        assert isinstance(refused, JournalUnavailable)
        assert refused.data["certain"]
        again = await opened.accept(task(2, key="one"))
        assert isinstance(again, AcceptedTask)
        assert await ids(opened) == [again.id]


async def test_what_a_sync_failed_of_is_told_only_once_it_was_written_anew(tmp_path: Path) -> None:
    """After the failed sync the WAL may be in the system's memory alone, so the main file needs a sync of its own."""
    broken, copy = tmp_path / "broken", tmp_path / "copy"
    arm(f"disk.sync.log=EIO?{broken}")
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        broken.touch()
        answers = opened.finish(end(one.id))
        assert isinstance(await answers.get(), JournalUnavailable)
        broken.unlink()
        assert await answers.get() is None
        copy.mkdir()
        (copy / FILE).write_bytes((tmp_path / FILE).read_bytes())  # without the WAL
    async with desk(copy) as opened:
        found = await opened.find(one.id)
        assert found is not None
        assert found.ended is not None


async def test_a_refusal_says_if_the_disk_may_have_the_task_all_the_same(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    arm(f"journal.committed=EIO?{broken}")
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        broken.touch()
        refused = await opened.accept(task(1, key="one"))
        assert not refused.data["certain"]
        assert "same key" in refused.message
        broken.unlink()
        again = await opened.accept(task(1, key="one"))
        assert await ids(opened) == [again.id]


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ("journal.open=EROFS", "make the disk of the state folder writable"),
        ("disk.write.log=EROFS", "make the disk of the state folder writable"),
        ("journal.open=ENOSPC", "make room"),
        ("disk.write.log=ENOSPC", "make room"),
        ("disk.write.log=EIO", "check the disk"),
    ],
)
async def test_a_start_on_a_disk_that_takes_nothing_says_what_to_do_and_changes_nothing(
    tmp_path: Path, fault: str, hint: str
) -> None:
    before = await accepted(tmp_path, task(1), task(2))
    content = (tmp_path / FILE).read_bytes()
    arm(fault)
    async with desk(tmp_path) as opened:
        failure = await opened.failure
        assert isinstance(failure, JournalUnavailable)
        assert hint in failure.message
        assert isinstance(await opened.accept(task(3)), JournalUnavailable)
    assert (tmp_path / FILE).read_bytes() == content
    failpoints.disarm()
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        assert [one.id for one in opened.pending] == [one.id for one in before]


@pytest.mark.parametrize("fault", ["journal.purge=EIO@1", "journal.vacuum=ENOSPC@1"])
async def test_an_error_in_housekeeping_ends_nothing(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PURGE_EVERY", 0.0)
    arm(fault)
    async with desk(tmp_path, keep=0.0) as opened:
        one = await opened.accept(task())
        assert await opened.finish(end(one.id, ended=1.0)).get() is None
        while await ids(opened):
            await asyncio.sleep(0.001)
        assert isinstance(await opened.accept(task()), AcceptedTask)


@pytest.mark.parametrize("fault", ["torn", "die"])
def test_a_torn_last_write_loses_nothing_that_was_acknowledged(tmp_path: Path, fault: str) -> None:
    chance = random.Random(fault)
    acknowledged: list[tuple[str, int]] = []
    for _ in range(4):
        victim = subprocess.run(
            [sys.executable, "-c", VICTIM, str(tmp_path)],
            env=os.environ | {failpoints.VARIABLE: f"disk.write.log={fault}@{20 + chance.randrange(200)}"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert victim.returncode == -signal.SIGKILL
        for line in victim.stdout.splitlines():
            with suppress(ValueError):  # the last line may be cut off
                what, number = line.split()
                acknowledged.append((what, int(number)))
    asyncio.run(_all_there(tmp_path, acknowledged))


async def _all_there(folder: Path, acknowledged: list[tuple[str, int]]) -> None:
    async with desk(folder, attempts=1000) as opened:
        await opened.recovered.wait()
        pending = {one.id for one in opened.pending}
        for what, number in acknowledged:
            found: Any = await opened.find(number)
            assert found is not None
            assert (found.ended is None) == (number in pending)
            assert what == "accepted" or found.ended is not None
    assert {what for what, _ in acknowledged} == {"accepted", "ended"}
    assert not damaged(folder)


async def test_changes_whose_commit_failed_and_is_on_the_disk_are_there_once(tmp_path: Path) -> None:
    await accepted(tmp_path)
    arm("journal.committed=EIO@2")
    async with desk(tmp_path) as opened:
        answers: asyncio.Queue[Any] = asyncio.Queue()
        opened.journal.persist([PutMessage(5, 7, None, b"a message")], answers.put_nowait)
        assert isinstance(await answers.get(), JournalUnavailable)
        assert await answers.get() is None
        rows = await opened.journal.read(lambda store: list(store.db.execute("SELECT pid, message FROM messages")))
        assert rows == [(5, 7)]
