"""The online backup: a copy made under load opens as a journal and has all tasks acknowledged before it began."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import apsw
import pytest

from ipc.errors import BackupFailed, Busy
from kernel.journal import backup
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE
from kernel.lib import failpoints
from tests.support.journal_desk import desk, end, task

pytestmark = pytest.mark.real_time


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


async def test_a_copy_made_under_load_has_all_that_was_acknowledged_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP", 2)  # so that much is written between its steps
    source, target = folder(tmp_path / "source"), folder(tmp_path / "target")
    async with desk(source) as opened:
        before = await asyncio.gather(*(opened.accept(task("x" * 2000)) for _ in range(200)))
        for one in before[:50]:
            assert await opened.finish(end(one.id)).get() is None
        meanwhile: list[AcceptedTask] = []
        over = asyncio.Event()

        async def load() -> None:
            while not over.is_set():
                meanwhile.append(await opened.accept(task("y" * 2000)))

        loading = asyncio.ensure_future(load())
        size = await opened.journal.backup(target / FILE)
        count = len(meanwhile)
        over.set()
        await loading
        assert count  # tasks were accepted during the backup
        assert size == (target / FILE).stat().st_size
        assert names(target) == [FILE]
        assert (target / FILE).stat().st_mode & 0o777 == 0o600
        last = await opened.accept(task())
    async with desk(target, attempts=1) as copied:  # the copy counts no crash
        await copied.recovered.wait()
        pending = [one.id for one in copied.pending]
        assert set(pending) >= {one.id for one in before[50:]}
        assert set(pending) <= {one.id for one in [*before[50:], *meanwhile]}
        assert last.id not in pending
        for one in before[:50]:
            found = await copied.find(one.id)
            assert found is not None
            assert found.reason == "done"
        assert isinstance(await copied.accept(task()), AcceptedTask)


async def test_a_copy_overwrites_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("something")
    async with desk(folder(tmp_path / "state")) as opened:
        for path, said in (
            (there, "not overwritten"),
            (tmp_path / "no folder" / "copy", "No such file"),
            (Path("relative"), "no absolute path"),
            (tmp_path / "null\0character", "is no path"),
        ):
            with pytest.raises(BackupFailed, match=said):
                await opened.journal.backup(path)
        assert there.read_text() == "something"
        assert isinstance(await opened.accept(task()), AcceptedTask)


async def test_a_copy_to_a_disk_without_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(one: backup.BackupCopy) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(backup.BackupCopy, "_finish", full)
    async with desk(folder(tmp_path / "state")) as opened:
        with pytest.raises(BackupFailed, match="No space left"):
            await opened.journal.backup(tmp_path / "copy")
        assert names(tmp_path) == ["state"]
        assert isinstance(await opened.accept(task()), AcceptedTask)


async def test_a_copy_that_finds_no_room_for_a_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = apsw.Connection

    def small(path: str) -> apsw.Connection:
        connection = real(path)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    async with desk(folder(tmp_path / "state")) as opened:
        await opened.accept(task())
        monkeypatch.setattr(backup.apsw, "Connection", small)
        with pytest.raises(BackupFailed, match="the disk is full"):
            await opened.journal.backup(tmp_path / "copy")
        monkeypatch.undo()
        assert names(tmp_path) == ["state"]


async def test_one_copy_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    real = backup.BackupCopy.step
    monkeypatch.setattr(backup.BackupCopy, "step", lambda one: real(one) if go.is_set() else None)
    async with desk(folder(tmp_path / "state")) as opened:
        first = asyncio.ensure_future(opened.journal.backup(tmp_path / "first"))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await opened.journal.backup(tmp_path / "second")
        go.set()
        assert await first
        assert await opened.journal.backup(tmp_path / "second")


@pytest.mark.parametrize("how", ["stop", "error"])
async def test_a_copy_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(backup.BackupCopy, "step", lambda one: None)  # the backup never ends
    state = folder(tmp_path / "state")
    try:
        async with desk(state) as opened:
            await asyncio.gather(*(opened.accept(task("x" * 2000)) for _ in range(200)))
            copying = asyncio.ensure_future(opened.journal.backup(tmp_path / "copy"))
            while names(tmp_path) == ["state"]:
                await asyncio.sleep(0.001)
            if how == "stop":
                await opened.journal.close()
            else:
                failpoints.arm({failpoints.VARIABLE: "journal.commit=EIO@1"})
                await opened.accept(task())
            with pytest.raises(BackupFailed, match="was not finished"):
                await copying
            assert names(tmp_path) == ["state"]
    finally:
        failpoints.disarm()
