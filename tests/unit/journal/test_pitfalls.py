"""Known pitfalls of systems that persist tasks across crashes, each with a test that it does not exist here.

The poison task that crashes the daemon for ever is also in `test_journal` (failed after a number of deaths) and, with
a real daemon that dies of it, in `tests/system/test_durable_tasks`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ipc.codec import encode
from ipc.errors import JournalUnavailable, KeyReused, StateInUse, TooManyAttempts
from ipc.messages import Emitted, Event, Log, Token
from kernel.core.stream import Stream
from kernel.journal.journal import Journal
from kernel.journal.records import AcceptedTask
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store
from kernel.lib import failpoints
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.journal_desk import accepted, crash, desk, end, task

pytestmark = [pytest.mark.real_time, pytest.mark.usefixtures("disarmed")]


# ---- poison messages that crash the consumer for ever: attempts are counted on disk, and bounded


async def test_pitfall_a_poison_task_is_not_tried_for_ever_and_keeps_its_count_over_restarts(tmp_path: Path) -> None:
    (poison,) = await accepted(tmp_path, task())
    for _ in range(3):
        crash(tmp_path)
        async with desk(tmp_path, attempts=3):
            pass  # the daemon dies over the task each time
    async with desk(tmp_path, attempts=3) as opened:
        await opened.recovered.wait()
        assert opened.pending == []
        found = await opened.find(poison.id)
        assert found is not None
        assert found.error == TooManyAttempts.__name__


# ---- one bad row aborts the recovery of all tasks


def spoil(folder: Path, number: int, call: bytes) -> None:
    opened = Store(folder / FILE, "full")
    with opened.transaction():
        opened.db.execute("UPDATE tasks SET call = ? WHERE id = ?", (call, number))
    opened.close()


@pytest.mark.parametrize("call", [b"", b"\xc1 no msgpack", encode({"program": 5})])
async def test_pitfall_one_bad_row_ends_its_own_task_and_aborts_no_other(tmp_path: Path, call: bytes) -> None:
    rows = await accepted(tmp_path, *(task({"n": number}, program="double") for number in range(5)))
    spoil(tmp_path, rows[2].id, call)

    async def double(ctx: Context, value: dict[str, int]) -> int:
        return 2 * value["n"]

    journal = Journal(tmp_path, JournalSettings())
    system = boot(tmp_path, journal=journal)
    system.program(double)
    while not all(row.ended for row in await journal.read(lambda store: store.history(9, None))):
        await asyncio.sleep(0.001)
    found = [await journal.read(lambda store, row=row: store.find(row.id)) for row in rows]
    assert [one.reason for one in found] == ["done", "done", "failed", "done", "done"]
    await system.kernel.drain(0)
    await system.kernel.close()


async def test_pitfall_a_bad_row_under_a_key_refuses_that_key_alone(tmp_path: Path) -> None:
    (bad,) = await accepted(tmp_path, task(1, key="bad"))
    spoil(tmp_path, bad.id, b"\xc1")
    async with desk(tmp_path) as opened:
        answers = await asyncio.gather(*(opened.accept(task(1, key=key)) for key in ("good", "bad", "fine")))
        assert [type(answer) for answer in answers] == [AcceptedTask, KeyReused, AcceptedTask]


# ---- a draining old daemon claims work again: the lock excludes the new one until the old one's last write


async def test_pitfall_an_old_daemon_that_drains_keeps_the_new_one_out_and_then_claims_nothing(tmp_path: Path) -> None:
    (one,) = await accepted(tmp_path, task())
    failpoints.arm({failpoints.VARIABLE: "journal.commit=sleep:0.05@2-"})  # so that the end of its run takes a while
    old = Journal(tmp_path, JournalSettings())
    old.finish(end(one.id), lambda error: None)
    closing = asyncio.ensure_future(old.close())
    await asyncio.sleep(0)
    refusals = 0
    while not closing.done():
        with pytest.raises(StateInUse):
            Journal(tmp_path, JournalSettings())
        refusals += 1
        await asyncio.sleep(0.001)
    assert refusals
    async with desk(tmp_path) as new:
        old.accept(task(), lambda outcome: None)
        old.finish(end(one.id, "killed", b"of the old daemon"), lambda error: None)
        await asyncio.sleep(0)
        two = await new.accept(task())
        rows = await new.journal.read(lambda store: store.history(9, None))
        assert [(row.id, row.reason) for row in rows] == [(two.id, ""), (one.id, "done")]


# ---- fsync takes 0.1 ms in one hour and many times that in the next: group commit copes with both


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_pitfall_a_slow_fsync_is_shared_by_64_in_flight(tmp_path: Path, seconds: float) -> None:
    lanes, rounds = 64, 5
    commits = 0
    real = Store.accept

    def counting(store: Store, tasks: Any) -> Any:
        nonlocal commits
        commits += bool(tasks)
        return real(store, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "accept", counting)
        failpoints.arm({failpoints.VARIABLE: f"disk.sync.log=sleep:{seconds}"})
        async with desk(tmp_path) as opened:

            async def lane() -> list[AcceptedTask]:
                return [await opened.accept(task(number)) for number in range(rounds)]

            accepted_tasks = await asyncio.gather(*(lane() for _ in range(lanes)))
    assert len({one.id for lane in accepted_tasks for one in lane}) == lanes * rounds
    if seconds:
        assert commits < lanes  # each had many tasks; one commit a task would be 320, and 6.4 s


# ---- counters that drift below zero, and call a reader slow that is not

EVENTS: list[Event] = [
    Token("some text", 1, 1),
    Token("other text", 1, 2),
    Emitted(1, "value"),
    Log(1, 0.0, "info", "line"),
]
STEPS = st.lists(st.one_of(st.sampled_from(EVENTS), st.integers(1, 400), st.just("close")), max_size=60)


@hypothesis.given(STEPS)
def test_pitfall_the_count_of_waiting_text_never_drifts_and_a_reader_who_keeps_up_is_not_slow(steps: list[Any]) -> None:
    delivered: list[Event] = []
    stream = Stream(delivered.append, 0, lambda: None)
    pushed = 0
    for step in steps:
        if step == "close":
            stream.close()
        elif isinstance(step, int):
            stream.grant(step)
        else:
            stream.push(step)
            pushed += len(step.text) if isinstance(step, Token) and not stream.closed else 0
        waiting = pushed - sum(len(event.text) for event in delivered if isinstance(event, Token))
        assert stream._text == (0 if stream.closed else waiting) >= 0
    stream.grant(10_000)
    assert stream._text == 0
    assert not stream.congested


async def test_pitfall_the_count_of_tasks_that_wait_for_the_disk_never_drifts(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    failpoints.arm({failpoints.VARIABLE: f"journal.commit=EIO?{broken}"})
    async with desk(tmp_path) as opened:
        await opened.recovered.wait()
        for number in range(20):
            if number % 3:
                broken.touch()
            answers = [opened.accept(task(value, key=f"{number} {value // 2}")) for value in range(6)]
            assert opened.journal._waiting == 6
            for answer in await asyncio.gather(*answers):
                assert isinstance(answer, AcceptedTask | KeyReused | JournalUnavailable)
            assert opened.journal._waiting == 0
            broken.unlink(missing_ok=True)
