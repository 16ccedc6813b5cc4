"""Private memory: each process has its own, no value is shared, and the usage never drifts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.codec import encode, reveal
from ipc.errors import InvalidCall, LimitExceeded, NotEncodable
from ipc.syscalls import MemoryDelete, MemoryGet, MemoryKeys, MemorySet
from kernel.gate import Gate
from kernel.memory.private import PrivateMemory
from kernel.memory.quotas import MemoryQuotas
from kernel.processes.limits import LimitEnforcer, LimitSettings
from llmosd.context import Context
from tests.support.system import System, lone_process


def unlimited() -> LimitEnforcer:
    return LimitEnforcer(LimitSettings(), cast("Any", None), Gate(), cast("Any", None))


async def test_an_agent_gets_what_it_set_until_it_deletes_it(system: System) -> None:
    async def program(ctx: Context) -> list[Any]:
        await ctx.memory.set("a.one", [1])
        await ctx.memory.set("a.two", {"x": None})
        await ctx.memory.set("b", 3)
        keys = await ctx.memory.keys("a.")
        deleted = [await ctx.memory.delete("b"), await ctx.memory.delete("b")]
        return [keys, deleted, await ctx.memory.get("a.one"), await ctx.memory.get("b"), await ctx.memory.get("b", 5)]

    assert await system.run(program) == [["a.one", "a.two"], [True, False], [1], None, 5]


async def test_another_process_sees_nothing_of_it_and_nothing_is_left_at_its_end(system: System) -> None:
    async def child(ctx: Context) -> Any:
        return await ctx.memory.get("secret", "nothing")

    async def program(ctx: Context) -> Any:
        await ctx.memory.set("secret", 1)
        return await ctx.wait(await ctx.spawn(system.program(child)))

    agent = system.spawn(program)
    assert await system.result(agent) == "nothing"
    assert system.kernel.memory._stores == {}


async def test_threads_of_a_process_share_its_memory(system: System) -> None:
    async def program(ctx: Context) -> Any:
        await asyncio.create_task(ctx.memory.set("key", 1))
        return await ctx.memory.get("key")

    assert await system.run(program) == 1


async def test_what_was_read_is_nobody_elses_and_large_bytes_are_not_copied(system: System) -> None:
    blob, seen = bytes(1_000_000), []

    async def program(ctx: Context) -> Any:
        value = [1]
        await ctx.memory.set("list", value)
        value.append(2)
        (await ctx.memory.get("list")).append(3)
        await ctx.memory.set("blob", blob)
        seen.append(await ctx.memory.get("blob"))
        changing = bytearray(b"before")
        await ctx.memory.set("buffer", changing)
        changing[:] = b"after!"
        return [await ctx.memory.get("list"), await ctx.memory.get("buffer")]

    assert await system.run(program) == [[1], b"before"]
    assert seen[0] is blob


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (MemorySet("", 1), InvalidCall),
        (MemorySet("k" * 513, 1), InvalidCall),
        (MemorySet(7, 1), InvalidCall),  # type: ignore[arg-type]
        (MemoryGet(""), InvalidCall),
        (MemoryDelete(""), InvalidCall),
        (MemorySet("key", object()), NotEncodable),
    ],
)
async def test_bad_keys_and_values_are_refused(system: System, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await system.call(call)
    assert system.kernel.memory.usage(system.client) == (0, 0)


def test_what_goes_over_a_bound_is_refused_by_name_and_changes_nothing() -> None:
    memory, owner = PrivateMemory(Gate(), MemoryQuotas(keys=2, key_bytes=20), unlimited()), lone_process(1)
    memory.set(owner, MemorySet("a", b"12345678"))
    with pytest.raises(LimitExceeded) as error:
        memory.set(owner, MemorySet("b", b"123456789"))
    assert error.value.data == {"limit": "bytes", "maximum": 20, "wanted": 11 + 12}
    memory.set(owner, MemorySet("b", 1))
    with pytest.raises(LimitExceeded) as error:
        memory.set(owner, MemorySet("c", 1))
    assert error.value.data == {"limit": "keys", "maximum": 2, "wanted": 3}
    memory.set(owner, MemorySet("a", b""))  # a value may always shrink
    assert memory.usage(owner) == (2, 3 + 2)


VALUES = (
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=8)
    | st.binary(max_size=300)
    | st.lists(st.integers(0, 9))
)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "delete", "end"]), st.integers(1, 2), st.sampled_from(["a", "bb", "é"]), VALUES)
)


@settings(max_examples=150)
@given(OPERATIONS)
def test_memory_and_its_accounts_are_those_of_a_simple_model(operations: list[tuple[str, int, str, Any]]) -> None:
    memory, processes = (
        PrivateMemory(Gate(), MemoryQuotas(keys=2, key_bytes=300), unlimited()),
        {1: lone_process(1), 2: lone_process(2)},
    )
    model: dict[int, dict[str, Any]] = {1: {}, 2: {}}

    def size(values: dict[str, Any]) -> int:
        return sum(len(key.encode()) + len(encode(value)) for key, value in values.items())

    for what, pid, key, value in operations:
        if what == "set":
            after = model[pid] | {key: value}
            grows = size(after) > size(model[pid])
            fits = (len(after) <= 2 or key in model[pid]) and (size(after) <= 300 or not grows)
            if fits:
                memory.set(processes[pid], MemorySet(key, value))
                model[pid] = after
            else:
                with pytest.raises(LimitExceeded):
                    memory.set(processes[pid], MemorySet(key, value))
        elif what == "delete":
            assert memory.delete(processes[pid], MemoryDelete(key)) == (model[pid].pop(key, memory) is not memory)
        else:
            memory.process_ended(processes[pid])
            model[pid] = {}
        for number, owner in processes.items():
            assert memory.usage(owner) == (len(model[number]), size(model[number]))
            assert memory.keys(owner, MemoryKeys()) == list(model[number])
            assert {name: reveal(memory.get(owner, MemoryGet(name))) for name in model[number]} == model[number]
