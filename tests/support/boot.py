"""Boots the kernel under test: every test and bench that has a kernel in its own process gets it here.

This is the one place in which a `Kernel` is made. Its drivers run on the loop of the test, its machine is what the test
says, and it never reads the settings or the entry points of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from kernel.journal.journal import Journal
from kernel.kernel import Kernel
from kernel.limits import LimitSettings
from kernel.slots.model import ModelSpec
from kernel.slots.settings import ResourceSettings, Scheduling
from llmosd.context import Context
from tests.support.drivers import InLoopLauncher
from tests.support.machine import FakeMachine
from tests.support.system import System

UNWRITABLE = Path("/dev/null/unused")  # the folder of kernels that are to write nothing

S = TypeVar("S", bound=System)


class Parts(TypedDict, total=False):
    """What a test may choose about its kernel. `agents` are the folders in which it finds programs."""

    agents: Iterable[Path]
    models: dict[str, ModelSpec]
    limits: LimitSettings
    scheduling: Scheduling
    resources: ResourceSettings
    journal: Journal


def boot(folder: Path, **parts: Unpack[Parts]) -> System:
    """A booted kernel on the running loop. Its cache and its swap files lie in `folder`.

    By default it has one simulated model, `sim`; the first of `models` is the default model.
    """
    return boot_as(System, folder, **parts)


def boot_as(kind: type[S], folder: Path, **parts: Unpack[Parts]) -> S:
    """The same, as a `System` with more to it."""
    models = parts.get("models", {"sim": ModelSpec(driver="simulated")})
    launcher = InLoopLauncher()
    machine = FakeMachine(launcher)
    kernel = Kernel(
        version="test",
        folders=parts.get("agents", ()),
        models=models,
        default_model=next(iter(models), ""),
        cache=folder / "cache",
        swap=folder / "swap",
        make_context=Context,
        limits=parts.get("limits", LimitSettings()),
        scheduling=parts.get("scheduling", Scheduling()),
        resources=parts.get("resources", ResourceSettings()),
        launcher=launcher,
        machine=machine,
        journal=parts.get("journal"),
    )
    return kind(kernel, launcher, machine)
