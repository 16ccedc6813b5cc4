"""The order of eviction: found with little work however many prefixes there are, and the same as by a full search."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("torch", reason="keys and values are tensors (extra `local`)")

from kernel.drivers.transformers.prefix import PrefixCache
from tests.support.prefix_cache import Cache


def valuations(monkeypatch: pytest.MonkeyPatch, prefixes: int, on_disk: int) -> int:
    """How many values the cache computes while it evicts `prefixes` prefixes, one at a time."""
    counted: Counter[str] = Counter()
    value = PrefixCache._value

    def counting(*args: Any) -> float:
        counted["values"] += 1
        return value(*args)

    with monkeypatch.context() as patched:
        patched.setattr(PrefixCache, "_value", counting)
        cache = Cache(pages=2 * prefixes, on_disk=on_disk)
        cache.memory.budget = 10**12
        for process in range(1, prefixes + 1):
            cache.keep([process, *[1] * 40], process)
        counted.clear()
        for _ in range(prefixes):
            assert cache.tree.make_room(cache.memory.free_bytes + 1)
        assert cache.memory.cached == 0
        assert bool(cache.tree.disk_cache.used) == bool(on_disk)
    return counted["values"]


@pytest.mark.parametrize("on_disk", [0, 100], ids=["to nowhere", "to a disk that is full"])
def test_the_work_of_an_eviction_does_not_grow_with_the_number_of_prefixes(
    monkeypatch: pytest.MonkeyPatch, on_disk: int
) -> None:
    few, many = (valuations(monkeypatch, prefixes, on_disk) for prefixes in (100, 200))
    assert many < 2.5 * few


def test_the_next_victim_is_the_one_that_a_full_search_finds() -> None:
    dice = random.Random(7)
    cache = Cache(pages=400, on_disk=300)
    tree = cache.tree
    slabs = []
    for _ in range(250):
        cache.now += dice.choice([1.0, 1.5, 90.0])
        process, tokens = dice.randrange(1, 9), [dice.randrange(2) for _ in range(dice.randrange(1, 5))]
        text = [one for one in tokens for _ in range(20)]
        match dice.randrange(6):
            case 0 | 1:
                tree.expected_returns.call_started(process, dice.choice([0.0, 5.0, 200.0]))
                cache.keep(text, process)
            case 2 if len(slabs) < 6:
                slabs.append(cache.use(text, process))
            case 3 if slabs:
                cache.free(slabs.pop(dice.randrange(len(slabs))))
            case 4:
                tree.expected_returns.call_ended(process)
                tree.process_ended(process) if dice.randrange(2) else None
            case 5:
                tree.make_room(cache.memory.free_bytes + 1)
        cache.now += 1.0
        nodes = list(tree._root.below())
        leaves = [
            node
            for node in nodes
            if node.in_memory and len(node.users) <= 1 and not any(child.in_memory for child in node.children.values())
        ]
        least = tree._leaves.least()
        assert (least is None) == (not leaves)
        if least is not None:
            assert least[1] == min(tree._value(node, cache.now) for node in leaves)
            assert least[0] in leaves
        on_disk = [node for node in nodes if not node.in_memory and not node.children]
        least = tree._leaves_on_disk.least()
        assert (None if least is None else least[1]) == min(
            (tree._value(node, cache.now) for node in on_disk), default=None
        )
        cache.check_books()


def test_the_order_holds_nothing_of_prefixes_that_are_gone() -> None:
    cache = Cache(pages=10_000)
    for process in range(1, 400):
        cache.keep([process % 250, process // 250, *[1] * 30], process)
        cache.tree.process_ended(process)
        cache.free(cache.use([process % 250, process // 250, *[1] * 30]))
    assert cache.tree.make_room(cache.memory.budget)
    for queue in (cache.tree._leaves, cache.tree._leaves_on_disk):
        assert len(queue) == 0
        assert len(queue._heap) < 100
