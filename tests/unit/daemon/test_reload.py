"""Settings that change while the daemon runs: each through its subsystem, and the rest are named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipc.errors import LimitExceeded
from ipc.syscalls import Limits, MemorySet, SetPolicy
from kernel.memory.quotas import MemoryQuotas
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.processes.limits import LimitSettings
from llmosd.context import Context
from llmosd.daemon.reload import LIVE, apply_settings, differences
from llmosd.daemon.settings import Settings
from tests.support.log_lines import CollectedLog
from tests.support.system import System


@pytest.fixture
def running(models: dict[str, ModelSpec]) -> Settings:
    """The settings with which the kernel under test was started."""
    return Settings(model="sim", models=dict(models))


def reloaded(system: System, running: Settings, **changes: Any) -> tuple[Settings, list[str]]:
    wanted = msgspec.structs.replace(running, **changes)
    return apply_settings(running, wanted, system.kernel, CollectedLog().log)


async def idle(ctx: Context) -> None:
    await ctx.receive()


async def spawning(ctx: Context, count: int) -> None:
    for _ in range(count):
        await ctx.spawn("idle")


async def test_unchanged_settings_change_nothing(system: System, running: Settings) -> None:
    assert reloaded(system, running) == (running, [])


async def test_limits_hold_for_new_processes_though_there_were_none(system: System, running: Settings) -> None:
    system.program(idle)
    limits = LimitSettings(process=Limits(children=1))
    now, changed = reloaded(system, running, limits=limits)
    assert changed == ["limits.process.children"]
    assert now.limits == limits
    process = system.spawn(spawning, 2)
    status = await system.status(process)
    assert status.error is not None
    assert "limit of 1 children" in status.error.message
    reloaded(system, now, limits=LimitSettings())
    assert (await system.status(system.spawn(spawning, 2))).error is None


async def test_quotas_of_memory_change(system: System, running: Settings) -> None:
    reloaded(system, running, memory=MemoryQuotas(keys=0, regions=0))
    with pytest.raises(LimitExceeded):
        await system.call(MemorySet("a", 1))


async def test_the_policy_of_a_used_model_changes_and_its_slots_need_a_restart(
    system: System, running: Settings
) -> None:
    runtime = system.kernel.resources.runtime("sim")
    runtime.load()
    spec = msgspec.structs.replace(running.models["sim"], slots=9, policy="fifo")
    wanted = msgspec.structs.replace(running, models={"sim": spec})
    now, changed = apply_settings(running, wanted, system.kernel, CollectedLog().log)
    assert changed == ["models.sim.policy"]
    assert differences(now, wanted) == ["models.sim.slots"]
    assert system.kernel.resources.runtime("sim").rules.policy.kind == "fifo"


async def test_an_unused_model_changes_and_a_new_one_is_added(system: System, running: Settings) -> None:
    models = {"sim": ModelSpec(driver="simulated", slots=9), "new": ModelSpec(driver="simulated", slots=3)}
    now, _ = reloaded(system, running, models=models, model="new")
    assert now.models == models
    assert system.kernel.resources.runtime("sim").spec.slots == 9
    assert system.kernel.resources.runtime(None).spec.slots == 3


async def test_a_policy_that_a_client_has_set_stays_unless_the_settings_name_another(
    system: System, running: Settings
) -> None:
    system.kernel.resources.runtime("sim").load()
    await system.call(SetPolicy(model="sim", kind="fair"))
    now, _ = reloaded(system, running, scheduling=SchedulingSettings(slow_step=3.0))
    assert system.kernel.resources.runtime("sim").rules.policy.kind == "fair"
    assert system.kernel.dispatcher.slow_step == 3.0
    reloaded(system, now, scheduling=SchedulingSettings(policy="edf"))
    assert system.kernel.resources.runtime("sim").rules.policy.kind == "edf"


async def test_the_memory_of_the_drivers_changes(system: System, running: Settings) -> None:
    reloaded(system, running, resources=ResourceSettings(memory=123))
    assert system.kernel.resources.drivers_budget <= 123


async def test_a_setting_that_cannot_change_is_named_and_stays(system: System, running: Settings) -> None:
    wanted = msgspec.structs.replace(running, state="/elsewhere", preload=False, drain_seconds=3.0)
    now, changed = apply_settings(running, wanted, system.kernel, CollectedLog().log)
    assert changed == ["drain_seconds"]
    assert differences(now, wanted) == ["preload", "state"]


async def test_the_level_of_the_log_changes(system: System, running: Settings) -> None:
    log = CollectedLog()
    apply_settings(running, msgspec.structs.replace(running, log_level="error"), system.kernel, log.log)
    log.logger.warning("hidden")
    assert log.lines == []


def test_every_live_setting_exists() -> None:
    assert set(LIVE) <= set(Settings.__struct_fields__)
