"""Boots the kernel under test, for every test and bench that runs a kernel in its own process.

Tests make a `Kernel` nowhere else. Its drivers run on the test's loop, and the test sets the state of its machine. It
never reads the settings or the entry points of the real machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

import msgspec

from kernel.journal.journal import Journal
from kernel.kernel import Kernel
from kernel.memory.quotas import MemoryQuotas
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.processes.limits import LimitSettings
from kernel.programs.tool import ToolSpec
from llmosd.context import Context
from tests.support.drivers import InLoopLauncher
from tests.support.machine import FakeMachine
from tests.support.system import System

UNWRITABLE = Path("/dev/null/unused")  # for kernels that must write nothing

S = TypeVar("S", bound=System)


class Settings(msgspec.Struct):
    """The settings of a kernel under test: no file, no environment variables, no shipped agents."""

    models: dict[str, ModelSpec]
    model: str
    agent_folders: Sequence[Path]
    state_path: Path
    cache_path: Path
    limits: LimitSettings
    scheduling: SchedulingSettings
    resources: ResourceSettings
    memory: MemoryQuotas = MemoryQuotas()
    tools: dict[str, ToolSpec] = {}


class Parts(TypedDict, total=False):
    """The parts of its kernel that a test may choose. `agents`: the folders in which the kernel finds programs."""

    agents: Sequence[Path]
    models: dict[str, ModelSpec]
    limits: LimitSettings
    scheduling: SchedulingSettings
    resources: ResourceSettings
    journal: Journal


def boot(folder: Path, **parts: Unpack[Parts]) -> System:
    """Boot a kernel on the running loop, with its cache and its swap files in `folder`.

    By default it has one simulated model, `sim`; the first of `models` is the default model.
    """
    return boot_as(System, folder, **parts)


def boot_as(kind: type[S], folder: Path, **parts: Unpack[Parts]) -> S:
    """Like `boot`, but return the subclass `kind` of `System`."""
    models = parts.get("models", {"sim": ModelSpec(driver="simulated")})
    settings = Settings(
        models=models,
        model=next(iter(models), ""),
        agent_folders=parts.get("agents", ()),
        state_path=folder,
        cache_path=folder / "cache",
        limits=parts.get("limits", LimitSettings()),
        scheduling=parts.get("scheduling", SchedulingSettings()),
        resources=parts.get("resources", ResourceSettings()),
    )
    launcher = InLoopLauncher()
    machine = FakeMachine(launcher)
    journal = parts.get("journal")
    kernel = Kernel(settings, Context, version="test", launcher=launcher, machine=machine, journal=journal)
    return kind(kernel, launcher, machine)
