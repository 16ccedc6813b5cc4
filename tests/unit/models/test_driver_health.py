"""Drivers that hang, leak, exit or load for ever: named within their time limit, and replaced without a token lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import DriverFailed, ModelLoadFailed
from ipc.syscalls import EmbedTexts, Models, Slots
from kernel.drivers.protocol import Working
from kernel.models.settings import ResourceSettings
from kernel.models.spec import ModelSpec
from tests.support.simulated import FAST, text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_teller")


def faulty(**options: Any) -> dict[str, ModelSpec]:
    limits = {"step_timeout": 10.0, "load_timeout": 30.0}
    return {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=FAST | options, **limits)}


def causes(process: Any) -> list[str]:
    """The causes of its drivers' deaths, from the log of the process."""
    return [line.fields["how"] for line in process.log or ()]


async def text_and_causes(system: System, **args: Any) -> tuple[Any, list[str]]:
    process = system.spawn("teller", **args)
    text = await system.result(process)
    return text, causes(process)


@pytest.mark.parametrize("models", [faulty(hang_after=7)])
async def test_a_driver_that_hangs_is_named_and_replaced_within_its_limit(system: System) -> None:
    before = system.loop.time()
    text, logged = await text_and_causes(system, seed=4)
    assert text == text_of(4)
    assert logged == ["hung: said nothing for 10.0 s with work to do; step_timeout is 10 s"] * 2
    assert system.loop.time() - before <= 20 + 2 * 11 + 2
    (row,) = await system.call(Slots())
    assert row.restarts == 2


@pytest.mark.parametrize("models", [faulty(hang_after=7)])
async def test_a_call_long_after_the_last_one_is_not_taken_for_a_hang(system: System) -> None:
    for _ in range(4):
        await system.run("teller", tokens=1)
        await asyncio.sleep(25)
    assert (await system.call(Slots()))[0].restarts == 0


@pytest.mark.parametrize("models", [faulty(hang_after=0)])
async def test_a_query_that_is_never_answered_is_failed_by_name_in_the_end(system: System) -> None:
    with pytest.raises(DriverFailed, match=r"4 times.*hung"):
        await system.call(EmbedTexts(["x"]))


@pytest.mark.parametrize("models", [faulty(hang_after=0)])
async def test_a_driver_that_says_it_works_is_alive_until_it_says_no_more(system: System) -> None:
    asking = asyncio.ensure_future(system.call(EmbedTexts(["x"])))
    await asyncio.sleep(4)
    driver = system.driver
    for _ in range(50):
        driver.on_message(Working())
        await asyncio.sleep(5)
        assert driver.alive
    await asyncio.sleep(6)
    assert not driver.alive
    with pytest.raises(DriverFailed, match=r"4 times.*hung"):
        await asking


@pytest.mark.parametrize("models", [faulty(swap_seconds=1000.0, token_bytes=1000, kv_memory=30_000)])
async def test_a_driver_that_never_ends_to_write_is_a_driver_that_hangs(system: System) -> None:
    calm = system.spawn("teller", seed=1)
    await asyncio.sleep(4.5)
    urgent = system.spawn("teller", seed=2, priority=3)
    assert await system.result(urgent) == text_of(2)
    assert await system.result(calm) == text_of(1)
    assert "hung" in causes(calm)[0]


@pytest.mark.parametrize("models", [faulty(exit_after=8)])
async def test_a_driver_that_exits_again_and_again_costs_no_token_while_there_is_progress(system: System) -> None:
    text, logged = await text_and_causes(system, seed=4)
    assert text == text_of(4)
    assert logged == ["exit code 3"] * 2


@pytest.mark.parametrize("models", [faulty(exit_after=8)])
async def test_a_generation_under_which_drivers_die_too_often_is_failed_by_name(system: System) -> None:
    with pytest.raises(DriverFailed, match=r"4 times.*exit code 3"):
        await system.run("teller", tokens=100)


@pytest.mark.parametrize("models", [faulty(leak=5_000_000)])
@pytest.mark.parametrize("resources", [ResourceSettings(leak_margin=40_000_000)])
async def test_a_driver_that_leaks_is_named_and_replaced(system: System) -> None:
    async def look() -> None:
        while True:
            await asyncio.sleep(1)
            system.look()

    looking = asyncio.ensure_future(look())
    text, logged = await text_and_causes(system, seed=4)
    looking.cancel()
    assert text == text_of(4)
    assert logged == [
        "leaks memory: takes 50 MB, and may take 40 MB at most",
        "leaks memory: takes 45 MB, and may take 40 MB at most",
    ]


@pytest.mark.parametrize("models", [faulty(token_bytes=1_000_000, kv_memory=100_000_000)])
@pytest.mark.parametrize("resources", [ResourceSettings(leak_margin=1_000_000)])
async def test_keys_and_values_are_no_leak(system: System) -> None:
    process = system.spawn("teller", seed=4)
    for _ in range(10):
        await asyncio.sleep(1)
        system.look()
    assert system.machine.rss(system.driver.pid) > 20_000_000
    assert await system.result(process) == text_of(4)
    assert causes(process) == []


@pytest.mark.parametrize("pressure", [True, False])
async def test_a_driver_that_the_system_killed_for_want_of_memory_is_named_so(system: System, pressure: bool) -> None:
    process = system.spawn("teller")
    await asyncio.sleep(4.5)
    if pressure:
        system.machine.available = 10**9
        system.look()
    system.driver.die("signal 9")
    await system.result(process)
    (logged,) = causes(process)
    assert logged == ("signal 9, probably out of memory: 1 GB of 16 GB was free" if pressure else "signal 9")


async def test_a_kill_for_want_of_memory_that_the_system_counted_is_named_too(system: System) -> None:
    process = system.spawn("teller")
    await asyncio.sleep(4.5)
    system.look()
    system.machine.killed = 1
    system.driver.die("signal 9")
    await system.result(process)
    assert causes(process) == [
        "signal 9, probably out of memory: the operating system killed a process for lack of memory"
    ]


@pytest.mark.parametrize("models", [faulty(hang_load=True)])
async def test_a_load_that_takes_too_long_is_tried_once_more_and_then_named(system: System) -> None:
    process = system.spawn("teller")
    before = system.loop.time()
    with pytest.raises(ModelLoadFailed, match=r"did not load within 30 s.*2 times"):
        await system.result(process)
    assert system.loop.time() - before == pytest.approx(60, abs=1)
    assert [driver.alive for driver in system.launcher.drivers] == [False, False]
    (row,) = await system.call(Models())
    assert row.state == "failed"


async def test_a_start_that_takes_too_long_is_named(
    system: System, models: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> Any:
        await asyncio.sleep(1e9)

    run = system.runtime()
    monkeypatch.setattr(run._driver, "_launch", never)
    with pytest.raises(ModelLoadFailed, match="could not be started within 1800 s"):
        await system.run("teller")


async def test_closing_while_a_driver_starts_leaves_none(system: System) -> None:
    system.kernel.resources.preload()
    await system.turns(2)
    await system.kernel.close()
    await asyncio.sleep(1)
    assert system.launcher.alive == []
