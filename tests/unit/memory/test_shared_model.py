"""Shared regions against models: usage equals that of a plain dictionary, and compare-and-sets form one chain."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.codec import encode, reveal
from ipc.errors import (
    Busy,
    LimitExceeded,
    UnknownRegion,
    VersionConflict,
)
from ipc.syscalls import SharedDelete, SharedGet, SharedSet
from kernel.gate import Gate
from kernel.memory.quotas import MemoryQuotas
from kernel.memory.shared import SharedMemory
from llmosd.context import Context
from tests.support.system import System, lone_process

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "compare", "stale", "delete", "end"]),
        st.integers(1, 3),  # pid: processes 1 and 3 have the same owner
        st.sampled_from(["a", "bb", "é"]),
        st.binary(max_size=60) | st.lists(st.integers(0, 9), max_size=5),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(OPERATIONS)
def test_regions_and_their_accounts_are_those_of_a_simple_model(operations: list[Any]) -> None:
    shared = SharedMemory(Gate(), MemoryQuotas(regions=2, region_bytes=90, shared_bytes=140))
    processes = {1: lone_process(1), 2: lone_process(2, "other"), 3: lone_process(3)}
    model: dict[str, tuple[Any, int, str, int]] = {}  # value, version, owner, creator
    last = 0

    def sizes(regions: dict[str, tuple[Any, int, str, int]], owner: str | None = None) -> list[int]:
        owned = [(name, region) for name, region in regions.items() if owner in (None, region[2])]
        return [len(name.encode()) + len(encode(region[0])) for name, region in owned]

    for what, pid, name, value, ephemeral in operations:
        caller, before = processes[pid], model.get(name)
        if what == "end":
            shared.process_ended(caller)
            model = {key: region for key, region in model.items() if region[3] != pid}
        elif what == "delete":
            if before is None:
                with pytest.raises(UnknownRegion):
                    shared.delete(caller, SharedDelete(name))
            else:
                shared.delete(caller, SharedDelete(name))
                del model[name]
        elif what == "stale":
            with pytest.raises(VersionConflict):
                shared.set(caller, SharedSet(name, value, last + 1))
        else:
            expected = None if what == "set" else before[1] if before else 0
            call = SharedSet(name, value, expected, ephemeral)
            owner, creator = (before[2], before[3]) if before else (caller.owner, pid if ephemeral else 0)
            after = {**model, name: (value, 0, owner, creator)}
            grows = sum(sizes(after)) > sum(sizes(model))
            if (before is None and len(sizes(after, owner)) > 2) or (grows and sum(sizes(after, owner)) > 90):
                with pytest.raises(LimitExceeded):
                    shared.set(caller, call)
            elif grows and sum(sizes(after)) > 140:
                with pytest.raises(Busy):
                    shared.set(caller, call)
            else:
                version = shared.set(caller, call)
                assert version > last
                last = version
                model[name] = value, version, owner, creator
        assert shared._size == sum(sizes(model))
        assert {owner: (account.entries, account.size) for owner, account in shared._accounts.items()} == {
            owner: (len(sizes(model, owner)), sum(sizes(model, owner)))
            for owner in {region[2] for region in model.values()}
        }
        for key, (stored, version, *_) in model.items():
            read = shared.get(caller, SharedGet(key))
            assert (reveal(read.value), read.version) == (stored, version)


@pytest.mark.parametrize("seed", range(10))
async def test_concurrent_compare_and_sets_form_one_chain(system: System, seed: int) -> None:
    """Linearisable: each success replaced exactly the version that it had read, with no other write in between."""
    chain: list[tuple[int, int]] = []

    async def racer(ctx: Context, number: int) -> int:
        choice, lost = random.Random(seed * 100 + number), 0
        for _ in range(15):
            try:
                _, version = await ctx.shared("race").get()
            except UnknownRegion:
                version = 0
            for _ in range(choice.randrange(3)):
                await asyncio.sleep(0)
            try:
                chain.append((version, await ctx.shared("race").compare_and_set(number, version)))
            except VersionConflict:
                lost += 1
        return lost

    name = system.program(racer)
    agents = [system.spawn(name, number) for number in range(6)]
    lost = sum([await system.result(agent) for agent in agents])
    assert lost > 0
    assert len(chain) + lost == 90
    assert [expected for expected, _ in chain] == [0, *(made for _, made in chain[:-1])]
