"""Models in memory: loaded on demand, unloaded when idle, evicted under one budget."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ipc.errors import ModelLoadFailed
from ipc.messages import State
from ipc.syscalls import Kill, Resume, Slots, Suspend
from kernel.models.settings import ResourceSettings
from tests.support.many_models import (
    GB,
    HOLDS_ONE,
    HOLDS_TWO,
    THREE,
    TWO,
    alive,
    loads,
    settle_sizes,
    simulated,
    states,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_sizes")


# ---- keep-alive


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=30.0)}])
async def test_a_model_is_unloaded_when_nobody_has_used_it_for_long_and_loaded_again_on_demand(system: System) -> None:
    await system.run("teller", model="one")
    await asyncio.sleep(29)
    assert await states(system) == {"one": "ready"}
    await system.run("teller", model="one")
    await asyncio.sleep(29)
    (row,) = await system.call(Slots())
    assert row.idle == pytest.approx(29, abs=0.1)
    assert row.keep_alive == 30.0
    await asyncio.sleep(2)
    assert await states(system) == {"one": "unloaded"}
    assert alive(system) == []
    (row,) = await system.call(Slots())
    assert (row.state, row.detail, row.driver_pid, row.memory) == ("unloaded", "not used for 30 s", None, 0)
    assert await system.run("teller", model="one", seed=3) == text_of(3)
    assert loads(system) == ["one", "one"]


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=0.0)}])
async def test_a_preloaded_model_that_nobody_wants_is_unloaded_too(system: System) -> None:
    system.kernel.resources.preload()
    await asyncio.sleep(4)
    assert await states(system) == {"one": "unloaded"}


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=5.0)}])
async def test_a_suspended_generation_keeps_its_model(system: System) -> None:
    process = system.spawn("teller", model="one")
    await asyncio.sleep(3)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(60)
    assert await states(system) == {"one": "ready"}
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(1)


# ---- the budget


@pytest.mark.parametrize("models", [THREE])
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_the_idle_model_of_least_use_makes_room(system: System) -> None:
    await settle_sizes(system)
    for model in ("one", "two", "one"):
        await system.run("teller", model=model)
        await asyncio.sleep(10)
    assert await system.run("teller", model="three") == text_of(1)
    assert await states(system) == {"one": "ready", "two": "unloaded", "three": "ready"}
    rows = {row.model: row for row in await system.call(Slots())}
    assert rows["two"].detail == "made room for three"


@pytest.mark.parametrize(
    "models",
    [{"one": simulated(load_seconds=100.0, load_timeout=500.0), "two": simulated(), "three": simulated(context=8190)}],
)
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_what_is_dear_to_load_again_is_kept_longer(system: System) -> None:
    await settle_sizes(system)
    await system.run("teller", model="one")
    await asyncio.sleep(60)
    await system.run("teller", model="two")
    await asyncio.sleep(10)
    await system.run("teller", model="three")
    assert await states(system) == {"one": "ready", "two": "unloaded", "three": "ready"}


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=GB // 2)])
async def test_a_model_that_never_fits_is_named_with_what_to_do(system: System) -> None:
    for _ in range(2):  # once measured, it is not even started
        with pytest.raises(ModelLoadFailed, match=r"model one takes 1 GB.*may take 500 MB; raise resources.memory"):
            await system.run("teller", model="one")
        await asyncio.sleep(5)
    assert loads(system) == ["one"]
    assert alive(system) == []


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=GB // 2)])
async def test_the_measured_size_of_a_model_says_nothing_about_other_files(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1000, 600):  # the second model at the same path is not refused for the size of the first
        monkeypatch.setattr("kernel.models.loader.check_requirements", lambda name, spec, size=size: size)
        with pytest.raises(ModelLoadFailed, match="takes 1 GB"):
            await system.run("teller", model="one")
        await asyncio.sleep(5)
    assert loads(system) == ["one", "one"]


@pytest.mark.parametrize("models", [TWO])
async def test_sizes_are_remembered_for_the_next_daemon(system: System, tmp_path: Any) -> None:
    await system.run("teller", model="one")
    await asyncio.sleep(1)
    ((key, measured),) = json.loads((tmp_path / "cache" / "models" / "sizes.json").read_text()).items()
    assert key.startswith('["simulated",')
    assert measured["size"] == GB
    assert measured["seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_call_that_waits_for_memory_says_why_and_has_a_place_and_a_kill_ends_the_wait(system: System) -> None:
    await settle_sizes(system)
    first = system.spawn("teller", model="one", tokens=5000)
    await asyncio.sleep(3)
    recorder = system.recorder()
    waiting = [system.spawn("teller", model="two", stream=recorder.stream) for _ in range(2)]
    await asyncio.sleep(1)
    rows = {row.model: row for row in await system.call(Slots())}
    assert (rows["two"].state, rows["two"].queued) == ("waiting", 2)
    assert rows["two"].detail == "for memory: waits for one to finish its turn (9 s at most)"
    assert [sequence.position for sequence in rows["two"].sequences] == [1, 2]
    shown = "for memory: waits for one to finish its turn"
    assert ("model two waiting", shown) in [(event.state, event.detail) for event in recorder.of(State)]
    for process in waiting:
        await system.call(Kill(process.pid))
    assert await states(system) == {"one": "ready", "two": "unloaded"}
    await asyncio.sleep(20)
    assert loads(system) == ["one"]
    await system.call(Kill(first.pid))
