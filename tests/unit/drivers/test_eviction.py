"""Prefixes while memory is short: preserved, swapped to disk or discarded, at the least cost."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.prefix import SOON
from kernel.drivers.transformers.prefix_disk_cache import DiskRead
from tests.support.prefix_cache import Cache


def test_what_a_process_that_lives_may_want_goes_to_the_disk_and_comes_back() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.match_length([1] * 64), cache.on_disk([1] * 64)) == (64, 64)
    assert (cache.tree.disk_cache.used, cache.tree.evicted) == (2 * cache.page, 0)
    cache.fetch([1] * 64)
    assert (cache.on_disk([1] * 64), cache.on_disk([2] * 64), cache.tree.reread) == (0, 64, 64)
    cache.free(cache.use([1] * 64))
    cache.check_books()


def test_what_was_read_back_needs_not_be_written_again() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    cache.fetch([1] * 64)
    used = cache.tree.disk_cache.used
    cache.fetch([2] * 64)
    assert (cache.on_disk([1] * 64), cache.tree.disk_cache.used) == (64, used)


def test_what_nobody_is_waiting_for_is_discarded() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.tree.process_ended(1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.match_length([1] * 64), cache.tree.evicted, cache.tree.disk_cache.used) == (0, 64, 0)


def test_what_is_computed_sooner_than_written_and_read_is_discarded() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.tree.rates.token = 1e-9
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.match_length([1] * 64), cache.tree.disk_cache.used) == (0, 0)


def test_what_is_computed_sooner_than_read_is_not_read() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    cache.tree.rates.token = 1e-9
    assert cache.tree.start_read([1] * 64, 0) == ""
    cache.keep([1] * 64, process=1)  # it was computed again, and is in memory
    cache.check_books()
    assert cache.on_disk([1] * 64) == 0


def test_the_process_that_stays_away_for_longest_gives_up_its_place_first() -> None:
    """The prefix of a process that returns after a second stays in memory; that of one that takes a minute does not."""
    cache = Cache(pages=4, on_disk=8)
    for process, usual in ((1, 60.0), (2, 1.0)):
        cache.tree.expected_returns.call_started(process, usual)
        cache.keep([process] * 64, process)
        cache.tree.expected_returns.call_ended(process)
    cache.tree.expected_returns.call_started(3, 1.0)
    cache.keep([3] * 64, 3)
    assert [cache.on_disk([process] * 64) for process in (1, 2, 3)] == [64, 0, 0]


def test_who_is_late_is_taken_to_stay_away_for_as_long_again() -> None:
    cache = Cache(pages=4, on_disk=8)
    for process, usual in ((1, 20.0), (2, 1.0)):
        cache.tree.expected_returns.call_started(process, usual)
        cache.keep([process] * 64, process)
        cache.tree.expected_returns.call_ended(process)
    cache.now = 15.0  # the first is expected in 5 seconds, or in 15 if late; the second is long late
    cache.tree.expected_returns.call_started(1, 20.0)
    cache.free(cache.use([1] * 64, 1))
    cache.tree.expected_returns.call_started(3, 1.0)
    cache.keep([3] * 64, 3)
    assert [cache.on_disk([process] * 64) for process in (1, 2, 3)] == [0, 64, 0]


def test_what_the_last_call_of_a_process_did_not_use_is_not_waited_for() -> None:
    cache = Cache(pages=4, on_disk=8)
    cache.tree.expected_returns.call_started(1, 1.0)
    cache.keep([1] * 64, process=1)
    cache.tree.expected_returns.call_started(1, 1.0)
    cache.keep([2] * 64, process=1)
    cache.tree.expected_returns.call_started(3, 5.0)
    cache.keep([3] * 64, process=3)
    assert [cache.on_disk([first] * 64) for first in (1, 2, 3)] == [64, 0, 0]


def test_a_full_disk_gives_up_what_is_least_worth() -> None:
    cache = Cache(pages=2, on_disk=4)
    for first in (1, 2, 3, 4):
        cache.keep([first] * 64, process=first)
        cache.now += 20
    assert cache.tree.disk_cache.used == 4 * cache.page
    assert [cache.tree.match_length([first] * 64) for first in (1, 2, 3, 4)] == [0, 64, 64, 64]


def test_a_disk_that_takes_nothing_means_that_it_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(pages=2, on_disk=4)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.memory, "write_prefix", full)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    assert (cache.tree.match_length([1] * 64), cache.tree.match_length([2] * 64)) == (0, 64)
    monkeypatch.undo()
    cache.keep([3] * 64, process=3)
    assert cache.tree.match_length([2] * 64) == 0  # no write is tried again immediately
    cache.now += 10
    cache.keep([4] * 64, process=4)
    assert cache.on_disk([3] * 64) == 64


def test_what_cannot_be_read_is_given_up() -> None:
    cache = Cache(pages=2, on_disk=4)
    cache.keep([1] * 64, process=1)
    cache.keep([2] * 64, process=2)
    fetch = cache.tree.start_read([1] * 64, 0)
    assert isinstance(fetch, DiskRead)
    assert cache.tree.start_read([1] * 64, 0) == SOON
    cache.tree.finish_read(fetch, None)
    del fetch
    cache.check_books()
    assert (cache.tree.match_length([1] * 64), cache.tree.disk_cache.used) == (0, 2 * cache.page)
