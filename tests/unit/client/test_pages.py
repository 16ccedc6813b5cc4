"""Listings are read page by page by both clients, and come back whole."""

from __future__ import annotations

import pytest

from ipc.errors import LlmosError
from ipc.syscalls import (
    FinishedCalls,
    History,
    LockInfo,
    Locks,
    MemoryKeys,
    NameInfo,
    Names,
    PeekMailbox,
    Ping,
    ProcessInfo,
    Programs,
    Ps,
    Regions,
    Syscall,
    TaskInfo,
    Threads,
    Tools,
    Usage,
)
from llmosd.client.pages import Pages, pages


def processes(*pids: int) -> list[ProcessInfo]:
    return [ProcessInfo(pid, 0, "p", "me", 0, "ready", "", 1, 0, 1.0, Usage()) for pid in pids]


def names(*some: str) -> list[NameInfo]:
    return [NameInfo(name, 1, "p") for name in some]


def reading(call: Syscall) -> Pages:
    found = pages(call)
    assert found is not None
    return found


def test_every_call_that_has_pages_is_read_in_pages_and_no_other() -> None:
    known = {Ps, History, FinishedCalls, PeekMailbox, Locks, Names, Regions, MemoryKeys, Programs, Threads, Tools}
    assert known == {kind for kind in Syscall.__subclasses__() if kind.page}
    for kind in known:
        assert pages(kind(1) if kind in (Threads, PeekMailbox) else kind()) is not None
    assert pages(Ping()) is None


def test_a_listing_ends_with_the_first_page_that_is_not_full() -> None:
    listing = reading(Ps(limit=100_000))
    assert listing.call == Ps(0, Ps.page)
    listing.add(processes(*range(1, Ps.page + 1)))
    assert listing.call == Ps(Ps.page + 1, Ps.page)
    listing.add(processes(9_999))
    assert listing.call is None
    assert len(listing.rows) == Ps.page + 1


def test_no_more_rows_are_asked_for_than_the_caller_wants() -> None:
    listing = reading(Ps(7, Ps.page + 3, clients=True))
    listing.add(processes(*range(10, Ps.page + 10)))
    assert listing.call == Ps(Ps.page + 10, 3, clients=True)
    listing.add(processes(*range(50_000, 50_003)))
    assert listing.call is None


def test_a_listing_by_name_goes_on_after_the_last_name() -> None:
    listing = reading(Names())
    assert listing.call == Names(after="")
    listing.add(names(*(f"{number:05}" for number in range(Names.page))))
    assert listing.call == Names(after=f"{Names.page - 1:05}")
    listing.add([])
    assert listing.call is None


def test_a_page_may_have_a_row_too_many_where_a_name_has_two() -> None:
    listing = reading(Locks())
    listing.add([LockInfo("lock", str(number), "held", [1], []) for number in range(Locks.page + 1)])
    assert listing.call == Locks(after=str(Locks.page))


def test_a_daemon_that_knows_no_pages_is_no_endless_loop() -> None:
    listing = reading(Names())
    everything = names(*(f"{number:05}" for number in range(Names.page + 7)))
    listing.add(everything)
    listing.add(list(everything))
    assert listing.call is None
    assert listing.rows == everything


def test_history_goes_back_and_a_listing_by_place_goes_on() -> None:
    history, threads = reading(History(5_000, "17")), reading(Threads(3))
    assert history.call == History(History.page, "17")
    history.add([TaskInfo(str(n), 0, "p", "me", "done", 1, 0.0, 1.0, "") for n in range(History.page, 0, -1)])
    assert history.call == History(History.page, "1")
    assert threads.call == Threads(3, 0)
    threads.add([None] * Threads.page)
    assert threads.call == Threads(3, Threads.page)


@pytest.mark.parametrize("call", [Names("m"), Threads(1, 5), Programs(0), Ps(limit=0), Ps(limit="many")])  # type: ignore[arg-type]
def test_a_call_for_one_page_is_sent_as_it_is_and_so_is_a_wrong_one(call: Syscall) -> None:
    assert pages(call) is None


def test_an_answer_that_is_no_list_is_no_endless_loop() -> None:
    listing = reading(Names())
    with pytest.raises((TypeError, LlmosError)):
        listing.add(None)  # type: ignore[arg-type]
