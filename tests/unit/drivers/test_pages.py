"""Virtual memory by the page: the memory that a range takes, and the pages that several ranges share.

The tests ask the operating system (`smaps`) for the memory of a range, not the driver's own accounting.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="pages are seen as tensors (extra `local`)")

from kernel.drivers.transformers import pages  # noqa: E402
from kernel.drivers.transformers.pages import PAGE, PageStore, Range  # noqa: E402
from tests.support.resident import memory_of  # noqa: E402

LARGE = 1 << 36  # bytes: more than the machine has


def memory_of_store(store: PageStore) -> int:
    return os.fstat(store.descriptor).st_blocks * 512


def filled(store: PageStore, *values: int) -> object:
    """A segment with one page for each value."""
    segment = store.segment(len(values) * PAGE)
    for place, value in enumerate(values):
        segment.write(place * PAGE, torch.full((PAGE,), value, dtype=torch.uint8))
    return segment


def test_a_range_reads_as_zeros_and_takes_only_what_is_written() -> None:
    pages = Range(LARGE)
    numbers = pages.tensor(torch.float32)
    assert numbers.shape == (LARGE // 4,)
    assert not numbers[: 1 << 20].any()
    assert not numbers[-5:].any()
    before = memory_of(pages, "Anonymous")
    numbers[LARGE // 8] = 1.0
    assert memory_of(pages, "Anonymous") == before + PAGE


def test_nobody_may_touch_what_is_beside_a_range() -> None:
    for size in (PAGE, 3 * PAGE + 1):
        area = Range(size)
        rights = {}
        for line in Path("/proc/self/maps").read_text().splitlines():
            places, right = line.split()[:2]
            start, end = (int(place, 16) for place in places.split("-"))
            rights |= dict.fromkeys((start, end - 1), right)
        assert rights[area.address - 1] == "---p"
        assert rights[area.address] == "rw-p"
        assert rights[area.address + -(-size // PAGE) * PAGE] == "---p"


def test_clear_gives_pages_back_and_they_read_as_zeros() -> None:
    pages = Range(64 * PAGE)
    data = pages.tensor(torch.uint8)
    data.fill_(7)
    assert memory_of(pages) == 64 * PAGE
    pages.clear(16 * PAGE, 32 * PAGE)
    assert memory_of(pages) == 32 * PAGE
    assert data.view(64, PAGE).any(1).tolist() == [True] * 16 + [False] * 32 + [True] * 16
    data[20 * PAGE] = 1  # and can be written again
    assert data.view(64, PAGE)[16:48].any(1).sum() == 1


def test_a_shared_page_is_copied_when_it_is_written_and_not_before() -> None:
    store = PageStore()
    segment = filled(store, 1, 2, 3)
    ranges = [Range(4 * PAGE) for _ in range(3)]
    views = [area.tensor(torch.uint8).view(4, PAGE) for area in ranges]
    for area in ranges:
        area.share(PAGE, 2 * PAGE, segment, PAGE)
    assert all(view[:, 0].tolist() == [0, 2, 3, 0] for view in views)
    assert [memory_of(area, "Anonymous") for area in ranges] == [0, 0, 0]
    views[0][1, 5] = 9
    assert views[0][1, 4:7].tolist() == [2, 9, 2]
    assert [view[1, 5] for view in views[1:]] == [2, 2]
    assert [memory_of(area, "Anonymous") for area in ranges] == [PAGE, 0, 0]
    again = torch.empty(3 * PAGE, dtype=torch.uint8)
    segment.read(0, again)
    assert again[::PAGE].tolist() == [1, 2, 3]


def test_clear_gives_shared_and_copied_pages_back() -> None:
    store = PageStore()
    segment = filled(store, 1, 2)
    pages = Range(2 * PAGE)
    data = pages.tensor(torch.uint8).view(2, PAGE)
    pages.share(0, 2 * PAGE, segment, 0)
    data[0, 0] = 5
    assert data[1, 0] == 2
    pages.clear(0, 2 * PAGE)
    assert not data.any()
    assert memory_of(pages, "Anonymous") == 0
    pages.share(0, PAGE, segment, PAGE)
    assert data[:, 0].tolist() == [2, 0]


def test_a_segment_gives_its_pages_back_and_leaves_others_alone() -> None:
    store = PageStore()
    first, second = filled(store, 1, 1, 1), filled(store, 2)
    assert memory_of_store(store) == 4 * PAGE
    del first
    gc.collect()
    assert memory_of_store(store) == PAGE
    third = filled(store, 3, 3)
    pages = Range(2 * PAGE)
    pages.share(0, PAGE, second, 0)
    pages.share(PAGE, PAGE, third, PAGE)
    assert pages.tensor(torch.uint8)[::PAGE].tolist() == [2, 3]


def test_any_number_of_segments_takes_one_descriptor() -> None:
    store = PageStore()
    before = len(os.listdir("/proc/self/fd"))
    segments = [filled(store, number % 251) for number in range(3000)]
    assert len(os.listdir("/proc/self/fd")) == before
    pages = Range(PAGE)
    pages.share(0, PAGE, segments[2999], 0)
    assert pages.tensor(torch.uint8)[7] == 2999 % 251


def test_a_range_that_there_are_no_addresses_for_is_refused_with_its_size() -> None:
    with pytest.raises(OSError, match=f"mmap of {(1 << 60) + 2 * PAGE} bytes"):
        Range(1 << 60)


@pytest.mark.parametrize("first", [True, False])
def test_a_segment_that_outlives_its_file_punches_no_hole_into_another(
    first: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A cycle of garbage is finalized in any order, and a closed descriptor's number soon belongs to another file."""
    stale = []

    def watched(descriptor: int, start: int, size: int) -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            stale.append(descriptor)
        return True

    monkeypatch.setattr(pages, "punch_hole", watched)
    request.addfinalizer(gc.unfreeze)
    gc.collect()
    gc.freeze()  # so that each collection looks at the cycle alone, not at everything that torch has made
    for _ in range(20):
        store = PageStore()
        number = store.descriptor
        segments = [store.segment(PAGE) for _ in range(3)]
        circle: list[object] = [store, *segments] if first else [*segments, store]
        circle.append(circle)
        del store, segments, circle
        gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert stale == []
