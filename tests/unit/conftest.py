"""Hooks and fixtures of all unit tests: the loop that each test runs on, and a kernel whose parts a test may override.

Async tests run on `VirtualTimeLoop`: no test sleeps, and a test that would wait for ever fails instead of hanging.
Tests marked `real_time` need sockets or processes of the operating system, and run on asyncio's own loop and on uvloop;
those marked `real_time("uvloop")` run only on the loop of the daemon, because nothing in them depends on the loop.
No test imports anything from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kernel.event_loop.guarded import GuardedLoop
from kernel.kernel import Kernel
from kernel.lib import failpoints as faults
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.processes.limits import LimitSettings
from tests.support.boot import boot
from tests.support.durable_world import World, copy_each_commit
from tests.support.simulated import FAST
from tests.support.system import System
from tests.support.virtual_time import GuardedSelectorLoop, GuardedVirtualTimeLoop, VirtualTimeLoop

# ---- time


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "real_time(*loops): needs sockets or processes; runs on asyncio's loop and on uvloop"
    )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    marker = item.get_closest_marker("real_time")
    if marker is None:
        return {"virtual": GuardedVirtualTimeLoop}
    both = {"asyncio": GuardedSelectorLoop, "uvloop": GuardedLoop}
    return {name: both[name] for name in marker.args or both}


# ---- the kernel


@pytest.fixture
def models() -> dict[str, ModelSpec]:
    """The models of the kernel: a step takes one second, and there are two slots. Tests may override this."""
    return {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=FAST)}


@pytest.fixture
def limits() -> LimitSettings:
    """The limits of the kernel. Tests may override this."""
    return LimitSettings()


@pytest.fixture
def scheduling() -> SchedulingSettings:
    """The scheduling settings of the kernel. Tests may override this."""
    return SchedulingSettings()


@pytest.fixture
def resources() -> ResourceSettings:
    """The settings of the resources that all models share. Tests may override this."""
    return ResourceSettings()


@pytest.fixture
async def system(
    tmp_path: Path,
    models: dict[str, ModelSpec],
    limits: LimitSettings,
    scheduling: SchedulingSettings,
    resources: ResourceSettings,
) -> AsyncIterator[System]:
    """A booted kernel on the loop of the test."""
    system = boot(
        tmp_path,
        agents=[tmp_path / "agents"],
        models=models,
        limits=limits,
        scheduling=scheduling,
        resources=resources,
    )
    yield system
    if isinstance(system.loop, VirtualTimeLoop):
        await system.end()
    else:
        system.kill_all()
    await system.kernel.close()
    assert not any(system.swap.glob("*"))
    assert system.launcher.alive == []


@pytest.fixture
def small_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a reader count as behind as soon as a few tokens wait for it."""
    monkeypatch.setattr("kernel.core.stream.MAX_TEXT", 30)


@pytest.fixture
def disarmed() -> Iterator[None]:
    """Disarms all failpoints after the test."""
    yield
    faults.disarm()


@pytest.fixture
def kernel(system: System) -> Kernel:
    return system.kernel


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Durable programs, the runs of the kernel that execute them, and its journals: `tests.support.durable_world`."""
    world = World(tmp_path)
    copy_each_commit(world, monkeypatch)
    return world


# ---- the transformers driver


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads of torch until the end of the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
