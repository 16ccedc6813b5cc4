"""`history --follow`: each new task and each end is noticed once, with bounded requests, however many there are."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest

from ipc.syscalls import TaskInfo
from llmosd.cli import task_watch
from llmosd.cli.task_watch import MOST_SINGLE, PAGE, TaskWatch


class FakeHistory:
    """Stands in for the tasks of a daemon. `requests`: the number of rows that each request asked for."""

    def __init__(self) -> None:
        self.rows: list[TaskInfo] = []  # the oldest first
        self.requests: list[int] = []
        self._clock = count(1)

    def submit(self, tasks: int = 1) -> list[str]:
        for _ in range(tasks):
            now = next(self._clock)
            self.rows.append(TaskInfo(f"t{now}", now, "echo", "me", "running", 1, float(now), 0.0, ""))
        return [row.id for row in self.rows[-tasks:]]

    def end(self, *ids: str) -> None:
        for at, row in enumerate(self.rows):
            if row.id in ids:
                self.rows[at] = msgspec.structs.replace(row, state="done", ended=float(next(self._clock)))

    def read(self, limit: int, before: str | None) -> list[TaskInfo]:
        self.requests.append(limit)
        ids = [row.id for row in self.rows]
        older = self.rows if before is None else self.rows[: ids.index(before)]
        return older[::-1][:limit]


def ids(rows: list[TaskInfo]) -> list[str]:
    return [row.id + "." * bool(row.ended) for row in rows]


def test_a_task_appears_when_it_is_new_and_when_it_ends() -> None:
    history = FakeHistory()
    watch = TaskWatch(history.read)
    assert watch.first(10) == []
    (one,) = history.submit()
    assert ids(watch.poll()) == [one]
    assert watch.poll() == []
    (two,) = history.submit()
    history.end(one)
    assert ids(watch.poll()) == [two, f"{one}."]
    assert watch.poll() == []


def test_a_task_that_ended_between_two_polls_appears_once() -> None:
    history = FakeHistory()
    watch = TaskWatch(history.read)
    watch.first(10)
    history.end(*history.submit())
    assert ids(watch.poll()) == ["t1."]
    assert watch.poll() == []


def test_it_begins_with_the_last_tasks_the_oldest_first() -> None:
    history = FakeHistory()
    history.submit(20)
    watch = TaskWatch(history.read)
    assert ids(watch.first(2)) == ["t19", "t20"]
    history.end("t3")
    assert ids(watch.poll()) == ["t3."]  # it was not shown, but its end is an end like any other


def test_more_new_tasks_than_a_page_are_all_noticed() -> None:
    history = FakeHistory()
    history.submit()
    watch = TaskWatch(history.read)
    watch.first(1)
    new = history.submit(3 * PAGE)
    assert ids(watch.poll()) == new
    history.end(*new)
    found = [row for _ in range(3 * PAGE // MOST_SINGLE) for row in ids(watch.poll())]
    assert sorted(found) == sorted(f"{one}." for one in new)
    assert watch.poll() == []


def test_a_poll_makes_few_requests_however_many_tasks_run() -> None:
    history = FakeHistory()
    history.submit(1000)
    watch = TaskWatch(history.read)
    watch.first(1)
    history.end("t500")
    found = []
    for _ in range(1000 // MOST_SINGLE):
        history.requests.clear()
        found += ids(watch.poll())
        assert len(history.requests) <= 1 + MOST_SINGLE
    assert found == ["t500."]


def test_it_forgets_the_oldest_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PAGE", 10), ("MORE", 10), ("MOST_SEEN", 60)):
        monkeypatch.setattr(task_watch, name, value)
    history = FakeHistory()
    watch = TaskWatch(history.read)
    watch.first(1)
    for _ in range(10):
        new = history.submit(20)
        assert ids(watch.poll()) == new
    assert (len(watch._seen), len(watch._unended)) == (60, 60)
