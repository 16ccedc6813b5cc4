"""The journal on a full or lost disk: it refuses new tasks with an error, ends wait, and it recovers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import JournalUnavailable
from kernel.journal import damage, writer
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE
from kernel.journal.store import Store
from tests.support.journal_desk import Desk, desk, end, task

pytestmark = pytest.mark.real_time


async def limit_pages(opened: Desk, pages: int) -> None:
    """Simulate a full disk: SQLite itself refuses to extend the file."""
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
        assert isinstance(await opened.accept(task("x" * 100_000)), AcceptedTask)
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
    """The journal was moved while in use. Its tasks go on, and it can be put back or copied."""
    monkeypatch.setattr(damage, "CHECK_EVERY", 0.0)
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
        copy.rename(state / FILE)  # too early: this daemon still has the old file open
        assert isinstance(await opened.accept(task()), JournalUnavailable)
        (state / FILE).rename(copy)
        state.rmdir()
        aside.rename(state)
        three = await opened.accept(task())
        assert isinstance(three, AcceptedTask)
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
