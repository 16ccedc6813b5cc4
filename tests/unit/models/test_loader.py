"""Loading a model: once for all waiting calls, which see its progress; a load that fails is a named error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipc.errors import ConfigError, LimitExceeded, ModelLoadFailed, ModelNotFound, UnknownModel
from ipc.messages import State
from ipc.syscalls import Generate, Models
from kernel.models.footprint import MeasuredSize, MeasuredSizes
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import teller
from tests.support.simulated import FAST, text_of
from tests.support.system import System


async def test_a_load_that_fails_is_named_and_the_next_call_tries_again(system: System) -> None:
    system.launcher.refusals.append(OSError("no more processes"))
    with pytest.raises(ModelLoadFailed, match="no more processes"):
        await system.run(teller)
    (row,) = await system.call(Models())
    assert row.state == "failed"
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_everybody_who_waits_for_a_load_that_fails_gets_the_error(system: System) -> None:
    system.launcher.refusals.append(OSError("no"))
    processes = [system.spawn(teller if not n else "teller") for n in range(5)]
    statuses = [await system.status(process) for process in processes]
    assert [status.error.code for status in statuses] == ["ModelLoadFailed"] * 5


@pytest.mark.parametrize("models", [{"sim": ModelSpec(driver="simulated", options={"step_secs": 1})}])
async def test_wrong_driver_options_are_a_named_error_that_lists_the_right_ones(system: System) -> None:
    for program in (teller, "teller"):
        with pytest.raises(ConfigError, match=r"step_secs.*step_seconds"):
            await system.run(program)
    await asyncio.sleep(1)
    assert all(driver.stopped for driver in system.launcher.drivers)


async def test_a_slow_load_is_told_to_those_who_wait(system: System) -> None:
    recorder = system.recorder()
    await system.result(system.spawn(teller, stream=recorder.stream))
    states = [(event.state, event.detail) for event in recorder.of(State)]
    assert ("model sim loading", "pretending to load") in states


TWO_MODELS = {
    "slow": ModelSpec(driver="simulated", options=FAST | {"load_seconds": 1000}),
    "quick": ModelSpec(driver="simulated", options=FAST),
}


@pytest.mark.parametrize("models", [TWO_MODELS])
async def test_a_model_that_loads_for_long_holds_up_no_other(system: System) -> None:
    async def asks(ctx: Context, model: str) -> str:
        return await ctx.generate("x", model=model, max_tokens=3)

    slow = system.spawn(asks, model="slow")
    before = system.loop.time()
    await system.run("asks", model="quick")
    assert system.loop.time() - before < 10
    assert not slow.ended
    await system.result(slow)


async def test_unknown_models_are_named_with_the_known_ones(system: System, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="configured: sim"):
        await system.call(Generate("x", "simm"))
    with pytest.raises(ModelNotFound):
        await system.call(Generate("x", str(tmp_path / "nothing")))


async def test_models_named_by_paths_come_and_go_without_end(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.models.manager.MOST_MODELS", 4)
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        system.launcher.refusals.append(OSError("no more processes"))
        with pytest.raises(ModelLoadFailed):
            await system.call(Generate("x", str(folder)))
        rows = await system.call(Models())
        assert [row.name for row in rows][-1] == str(folder)
        assert len(rows) <= 4
    assert await system.run(teller, tokens=5) == text_of(1, 5)


async def test_no_model_in_use_is_forgotten_for_another_path(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.models.manager.MOST_MODELS", 2)
    for name in "ab":
        (tmp_path / name).mkdir()

    async def asks(ctx: Context) -> str:
        return await ctx.generate("x", model=str(tmp_path / "a"))

    first = system.spawn(asks)
    await system.turns(5)
    with pytest.raises(LimitExceeded, match="the daemon knows 2 models, which is the limit, and all"):
        await system.call(Generate("x", str(tmp_path / "b")))
    assert not first.ended


async def test_a_model_is_not_forgotten_while_its_driver_is_ending(system: System) -> None:
    await system.run(teller, tokens=5)
    runtime = system.runtime()
    runtime.fail(ModelLoadFailed("the test fails it"))
    assert runtime.pid is None
    assert not runtime.forgettable  # its driver still takes memory, and a stop of the daemon has to wait for it
    await system.until(lambda: runtime.forgettable)
    assert not system.launcher.alive


def test_only_the_sizes_that_were_measured_last_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.models.footprint.MOST_SIZES", 3)
    sizes = MeasuredSizes(tmp_path / "sizes.json")
    for name in ("a", "b", "c", "a", "d"):
        contents = sizes.put(name, MeasuredSize(1, 1.0))
    sizes.write(contents)
    again = MeasuredSizes(tmp_path / "sizes.json")
    assert [name for name in "abcd" if again.get(name) is not None] == ["a", "c", "d"]
