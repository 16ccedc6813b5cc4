"""Hand-overs between the loop and the journal's thread: either side may be late at each point, and a disk may fail.

Each request is answered as promised: once, but an end that the disk refused first is answered with the error before.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import JournalUnavailable
from kernel.journal import writer
from kernel.journal.changes import HighestIds
from kernel.journal.records import AcceptedTask
from kernel.lib import failpoints
from tests.support.journal_desk import desk, end, task

pytestmark = pytest.mark.real_time

GUARD = 60.0  # seconds; only a test that hangs takes as long
WRITING = ("journal.begin", "journal.commit", "journal.committed")
CASES = [("journal.answer", 0), *((point, error) for point in WRITING for error in (0, errno.EIO, errno.ENOSPC))]


class Late:
    """Holds the journal's thread at the next pass of `name` until `go`, and raises `error` there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: int) -> None:
        self._name, self._error = name, error
        self._armed = True
        self._answers = 0
        self.reached, self.go, self.twice = threading.Event(), threading.Event(), threading.Event()
        monkeypatch.setattr(failpoints, "point", self.point)
        monkeypatch.setattr(writer, "RETRY", 0.005)

    def point(self, name: str) -> None:
        if name == "journal.answer":
            self._answers += 1
            if self._answers == 2:
                self.twice.set()
        if name == self._name and self._armed:
            self._armed = False
            self.reached.set()
            assert self.go.wait(GUARD)
            if self._error:
                raise OSError(self._error, os.strerror(self._error))

    async def held(self) -> None:
        """Return when the thread is at the point."""
        assert await asyncio.to_thread(self.reached.wait, GUARD)


async def answers_of_end(answers: asyncio.Queue[Any], error: int) -> None:
    if error:
        assert isinstance(await answers.get(), JournalUnavailable)
    assert await answers.get() is None


@pytest.mark.parametrize("blocked", [False, True], ids=["thread late", "loop late"])
@pytest.mark.parametrize(("point", "error"), CASES)
async def test_each_request_is_answered_as_promised_whichever_side_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: int, blocked: bool
) -> None:
    async with desk(tmp_path, sync="normal") as opened:
        one = await opened.accept(task(1))
        late = Late(monkeypatch, point, error)
        answers, persisted = opened.finish(end(one.id)), asyncio.Queue[Any]()
        await late.held()
        opened.accept(task(2)).cancel()  # its answer raises
        accepted = opened.accept(task(3))
        opened.journal.persist((HighestIds(pid=7),), persisted.put_nowait)
        found = asyncio.ensure_future(opened.find(one.id))
        given_up = asyncio.ensure_future(opened.find(one.id))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        late.go.set()
        if blocked:
            assert late.twice.wait(GUARD)  # the thread works on while an agent holds the loop
        await answers_of_end(answers, error)
        assert isinstance(await accepted, AcceptedTask)
        assert await persisted.get() is None
        row = await found
        assert row is not None
        assert row.ended is not None
        assert opened.journal.waiting == 0
    assert answers.empty()
    assert persisted.empty()


@pytest.mark.parametrize(("point", "error"), [case for case in CASES if case[1] != errno.ENOSPC])
async def test_a_close_at_any_point_writes_and_answers_what_was_requested_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: int
) -> None:
    async with desk(tmp_path, sync="normal") as opened:
        one = await opened.accept(task(1))
        late = Late(monkeypatch, point, error)
        answers = opened.finish(end(one.id))
        await late.held()
        accepted = opened.accept(task(2))
        closing = [asyncio.ensure_future(opened.journal.close()) for _ in range(2)]
        closing[0].cancel()
        await asyncio.sleep(0)
        refused = opened.accept(task(3))
        late.go.set()
        assert isinstance(await refused, JournalUnavailable)
        await asyncio.wait(closing)
        await answers_of_end(answers, error)
        two = await accepted
    assert answers.empty()
    async with desk(tmp_path, sync="normal") as opened:
        await opened.recovered.wait()
        assert [pending.id for pending in opened.pending] == [two.id]
        (crashes,) = await opened.journal.read(lambda store: list(store.db.execute("SELECT sum(crashes) FROM tasks")))
        assert crashes == (0,)
