"""Garbage in cycles is collected when it takes memory, and not more often than its collection is worth."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from kernel.core.process_table import ProcessTable
from kernel.processes import garbage
from kernel.processes.garbage import Garbage
from tests.support.system import lone_process

MB = 1024 * 1024
START = 50 * MB


class Machine:
    """The memory of the daemon, and a collector that takes time: `recent` and `aside` are bytes of garbage."""

    def __init__(self, table: ProcessTable) -> None:
        self.live = START
        self.recent = self.aside = 0
        self.recent_seconds, self.everything_seconds = 0.001, 0.5
        self.frozen = True
        self.spent = 0.0
        self.table = table
        self.garbage = Garbage(table, asyncio.get_running_loop(), lambda: self.live + self.recent + self.aside)
        self.thresholds: tuple[int, ...] = ()

    def collect(self) -> int:
        self.recent = 0
        self.spent += self.recent_seconds if self.frozen else self.everything_seconds
        if not self.frozen:
            self.aside = 0
        return 7

    def freeze(self) -> None:
        self.frozen = True

    def unfreeze(self) -> None:
        self.frozen = False

    def set_threshold(self, *thresholds: int) -> None:
        self.thresholds = thresholds

    @property
    def counts(self) -> tuple[int, int]:
        """Collections of recent objects, and of everything."""
        return self.garbage.recent.count, self.garbage.everything.count


@pytest.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(ProcessTable())
    monkeypatch.setattr(garbage, "gc", machine)
    monkeypatch.setattr(garbage, "release_free_memory", lambda: None)
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(garbage, "time", SimpleNamespace(thread_time=lambda: machine.spent, monotonic=loop.time))
    for pid in range(1, 101):
        machine.table.alive[pid] = lone_process(pid)
        machine.table.alive[pid].started = loop.time() + 1
    return machine


@pytest.fixture
async def running(machine: Machine) -> AsyncIterator[Machine]:
    machine.garbage.start()
    await asyncio.sleep(2)
    yield machine
    machine.garbage.stop()


def end(machine: Machine, count: int) -> None:
    """End the oldest processes."""
    for pid in sorted(machine.table.alive)[:count]:
        machine.garbage.process_ended(machine.table.alive.pop(pid))


async def test_few_objects_that_take_much_memory_are_collected(running: Machine) -> None:
    running.recent = 40 * MB
    await asyncio.sleep(1)
    assert (running.recent, running.counts) == (0, (1, 0))


async def test_nothing_is_collected_while_the_memory_does_not_grow(running: Machine) -> None:
    running.recent = 10 * MB
    await asyncio.sleep(3600)
    assert running.counts == (0, 0)


async def test_memory_stays_bounded_while_processes_leave_cycles_all_the_time(running: Machine) -> None:
    most = 0
    for _ in range(1000):
        running.recent += 5 * MB
        await asyncio.sleep(0.02)
        most = max(most, running.recent)
    assert most < 120 * MB
    assert running.counts[1] == 0


async def test_what_processes_leave_is_collected_when_most_of_them_have_ended(running: Machine) -> None:
    running.live += 60 * MB
    await asyncio.sleep(60)
    assert running.counts == (1, 0)
    running.live, running.recent = START, 60 * MB  # as much as before, but nobody uses it any more
    await asyncio.sleep(60)
    assert running.counts == (1, 0)
    end(running, 60)
    await asyncio.sleep(60)
    assert (running.recent, running.counts) == (0, (2, 0))


async def test_what_processes_leave_is_collected_even_if_it_was_set_aside(running: Machine) -> None:
    running.live += 400 * MB
    await asyncio.sleep(60)
    assert running.counts == (1, 1)
    running.live, running.aside = START, 400 * MB
    await asyncio.sleep(60)
    assert running.counts == (1, 1)
    end(running, 100)
    await asyncio.sleep(60)
    assert (running.aside, running.counts) == (0, (1, 2))


async def test_processes_that_leave_nothing_cause_no_collection(running: Machine) -> None:
    running.live += 400 * MB
    await asyncio.sleep(60)
    assert running.counts == (1, 1)
    for _ in range(100):
        await asyncio.sleep(0.1)
        end(running, 1)
        running.live -= 4 * MB
    await asyncio.sleep(3600)
    assert running.counts == (1, 1)


async def test_a_heap_that_grows_without_garbage_is_visited_ever_more_rarely(running: Machine) -> None:
    for _ in range(10_000):
        running.live += MB
        await asyncio.sleep(0.1)
    assert running.counts[1] < 8
    assert running.counts[0] < 100


async def test_collections_take_a_small_share_of_the_time_however_long_one_takes(running: Machine) -> None:
    running.recent_seconds, running.everything_seconds = 0.015, 5.0
    for _ in range(2000):
        running.live += 8 * MB
        running.recent += 8 * MB
        running.aside += 8 * MB
        end(running, 1)
        await asyncio.sleep(0.1)
    assert running.counts[1] >= 1
    assert running.spent < 0.2 * 200


async def test_recent_objects_that_take_long_to_visit_are_set_aside(running: Machine) -> None:
    running.recent_seconds = 0.3
    running.frozen = False
    running.everything_seconds = 0.3
    running.recent = 40 * MB
    await asyncio.sleep(1)
    assert running.frozen
    running.recent = 40 * MB
    await asyncio.sleep(3)  # the next one is expected to be short, and need not wait for the share of a long one
    assert running.counts == (2, 0)


async def test_python_collects_never_everything_by_itself(running: Machine) -> None:
    assert running.thresholds[2] >= 1_000_000


def test_the_memory_of_a_cycle_is_seen_and_freed(tmp_path: object) -> None:
    class Node:
        def __init__(self) -> None:
            self.me = self
            self.data = b"x" * (200 * MB)

    before = garbage.own_memory()
    node = weakref.ref(Node())
    assert garbage.own_memory() - before > 150 * MB
    garbage.gc.collect()
    garbage.release_free_memory()
    assert node() is None
    assert garbage.own_memory() - before < 50 * MB
