"""Pids count up, are reserved on disk before anybody sees them, and are never given out by a later run."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from ipc.errors import ShuttingDown
from kernel.core.pids import LEAST_BLOCK, MARGIN, MOST_BLOCK, PidAllocator


def allocator(last: int = 0, reserved: int = LEAST_BLOCK) -> tuple[PidAllocator, list[int]]:
    pids, requests = PidAllocator(), []
    pids.on_low.append(requests.append)
    pids.start_after(last, reserved)
    return pids, requests


async def test_without_a_journal_pids_count_up_and_nobody_waits():
    pids = PidAllocator()
    assert [pids.take() for _ in range(5000)] == list(range(1, 5001))
    assert pids.ready
    await pids.wait(1000)


async def test_a_run_continues_after_the_last_pid_of_the_previous_one():
    pids, requests = allocator(last=41, reserved=1041)
    assert (pids.take(), pids.take(), requests) == (42, 43, [])


async def test_more_pids_are_requested_while_half_of_the_block_is_left():
    pids, requests = allocator()
    for _ in range(LEAST_BLOCK // 2):
        pids.take()
    assert requests == []
    pids.take()
    assert requests == [LEAST_BLOCK // 2 + MARGIN + LEAST_BLOCK]


async def test_blocks_grow_with_the_pids_that_were_used_and_stay_bounded():
    pids, requests = allocator()
    for _ in range(1_000_000):
        pids.take()
    assert len(requests) < 50
    assert max(later - earlier for earlier, later in itertools.pairwise(requests)) <= MOST_BLOCK + MARGIN
    assert requests[-1] >= pids.last


async def test_a_start_waits_until_its_pid_is_on_disk():
    pids, requests = allocator()
    while pids.ready:
        pids.take()
    assert pids.last == LEAST_BLOCK - MARGIN
    waiting = [asyncio.create_task(pids.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    pids.confirm(requests[-1])
    await asyncio.gather(*waiting)
    assert pids.ready


async def test_all_that_wait_are_covered_by_the_next_request():
    pids, requests = allocator()

    async def start() -> None:
        await pids.wait()
        pids.take()

    starts = [asyncio.create_task(start()) for _ in range(10 * LEAST_BLOCK)]
    await asyncio.sleep(0)
    for _ in range(2):  # the first request precedes most waits; one more covers them all
        pids.confirm(requests[-1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*starts)


async def test_a_cancelled_wait_leaves_the_others_waiting():
    pids, requests = allocator()
    first, second = asyncio.create_task(pids.wait(2000)), asyncio.create_task(pids.wait(2000))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert (first.cancelled(), second.done(), requests[-1] >= 4000) == (True, False, True)
    pids.confirm(requests[-1])
    await second


async def test_while_the_disk_refuses_writes_processes_start_without_a_reservation():
    pids, requests = allocator()
    waiting = asyncio.create_task(pids.wait(2000))
    await asyncio.sleep(0)
    pids.confirm(requests[-1], refused=True)
    await waiting
    pids.confirm(requests[-1])
    while pids.ready:
        pids.take()
    assert pids.last == requests[0] - MARGIN


async def test_processes_that_start_after_a_commit_are_covered_by_a_request_before_it():
    pids, requests = allocator()
    pids.cover(LEAST_BLOCK - MARGIN)
    assert requests == []
    pids.cover(50_000)
    assert requests == [50_000 + MARGIN + LEAST_BLOCK]
    pids.cover(40_000)
    assert len(requests) == 1


async def test_no_pid_is_given_out_after_the_last_one_was_written():
    pids, _ = allocator(last=7, reserved=1007)
    assert pids.take() == pids.close() == 8
    with pytest.raises(ShuttingDown):
        pids.take()
