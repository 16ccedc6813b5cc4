"""The journal is opened again after an error of the disk: the same file, synced, and closed in order at the stop."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from ipc.errors import JournalUnavailable
from kernel.journal import writer
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE
from kernel.lib import failpoints
from tests.support.journal_desk import desk, end, task

pytestmark = pytest.mark.real_time


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, disarmed: None) -> None:
    monkeypatch.setattr(writer, "RETRY", 0.01)


def reading(path: Path) -> apsw.Connection:
    """Another program that reads the journal, and goes on reading: the WAL cannot be moved meanwhile."""
    connection = apsw.Connection(str(path))
    connection.execute("BEGIN")
    list(connection.execute("SELECT count(*) FROM tasks"))
    return connection


def arm(text: str) -> None:
    failpoints.arm({failpoints.VARIABLE: text})


async def test_after_a_failed_sync_nothing_is_reported_until_the_wal_could_be_moved(tmp_path: Path) -> None:
    broken, path = tmp_path / "broken", tmp_path / FILE
    arm(f"disk.sync.log=EIO?{broken}")
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        with closing(reading(path)):
            broken.touch()
            answers = opened.finish(end(one.id))
            assert isinstance(await answers.get(), JournalUnavailable)
            broken.unlink()
            refused = await opened.accept(task(2))
            assert isinstance(refused, JournalUnavailable)
            assert "another program reads" in refused.message
            assert answers.empty()
        assert await answers.get() is None
        assert isinstance(await opened.accept(task(2)), AcceptedTask)


async def test_a_stop_while_another_program_reads_the_journal_counts_as_no_crash(tmp_path: Path) -> None:
    async with desk(tmp_path) as opened:
        await opened.accept(task())
        reader = reading(tmp_path / FILE)
    with closing(reader):
        reader.execute("COMMIT")
        assert list(reader.execute("SELECT clean FROM stops")) == [(1,)]


async def test_a_stop_right_after_an_error_of_the_disk_counts_as_no_crash(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    arm(f"journal.commit=EIO?{broken}")
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        broken.touch()
        assert isinstance(await opened.accept(task()), JournalUnavailable)
        broken.unlink()
    with closing(apsw.Connection(str(tmp_path / FILE))) as db:
        assert list(db.execute("SELECT clean FROM stops")) == [(1,)]


@pytest.mark.parametrize("instead", [False, True])
async def test_a_journal_that_was_moved_is_not_replaced_by_an_empty_one_after_an_error(
    tmp_path: Path, instead: bool
) -> None:
    broken, path, aside = tmp_path / "broken", tmp_path / FILE, tmp_path / "aside"
    arm(f"journal.commit=EIO?{broken}")
    async with desk(tmp_path) as opened:
        one = await opened.accept(task())
        os.rename(path, aside)
        if instead:
            path.touch()
        broken.touch()
        answers = opened.finish(end(one.id, outcome=b"the end"))
        assert isinstance(await answers.get(), JournalUnavailable)
        broken.unlink()
        with pytest.raises(JournalUnavailable, match="removed or moved"):
            await opened.find(one.id)
        assert path.exists() == instead
        os.rename(aside, path)
        assert await answers.get() is None
        found = await opened.find(one.id)
        assert found is not None
        assert found.outcome == b"the end"
