"""The guards of the standard library: functions that act on the whole daemon act on an agent's own process instead.

The kernel calls `install` when it starts. For code without a process, each function does what it did before. The guards
never restrict what an agent may do with things of its own.
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import subprocess
import sys
import weakref
from typing import Any

from kernel.core.process import Process
from kernel.event_loop.belongings import BELONGINGS
from kernel.event_loop.guarded import Guarded
from kernel.event_loop.owner import acting_process
from kernel.event_loop.signals import SIGNALS
from kernel.event_loop.subprocesses import Subprocess

_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()  # those of kernels

_all_tasks = asyncio.all_tasks
_enable_faults, _disable_faults = faulthandler.enable, faulthandler.disable
_execute_child: Any = getattr(subprocess.Popen, "_execute_child")  # noqa: B009


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Guard `loop`, which is that of a kernel. Call this in the main thread."""
    _loops.add(loop)
    SIGNALS.install()
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]
    faulthandler.enable = _not_for_agents(_enable_faults)
    faulthandler.disable = _not_for_agents(_disable_faults)
    # Also where it was imported by name. Modules that agents import later get it from asyncio.
    for module in tuple(sys.modules.values()):
        if module.__dict__.get("all_tasks") is _all_tasks and module.__name__ != __name__:
            module.__dict__["all_tasks"] = all_tasks


def uninstall() -> None:
    """Undo `install`, in a forked child, which nothing but its own code uses."""
    SIGNALS.uninstall()
    subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]
    faulthandler.enable, faulthandler.disable = _enable_faults, _disable_faults


def process_ended(loop: asyncio.AbstractEventLoop, process: Process) -> None:
    """Close what `process` has opened, and drop what it has left to the loop."""
    if isinstance(loop, Guarded):
        loop.process_ended(process)
    if process in BELONGINGS.entries:
        BELONGINGS.process_ended(process, loop)


@functools.wraps(_all_tasks)
def all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[Any]:
    """For an agent: the threads of its process. For other code: all tasks of the loop."""
    if loop is None:
        loop = asyncio.get_running_loop()
    process = acting_process() if loop in _loops else None
    if process is None:
        return _all_tasks(loop)
    return {thread for thread in tuple(process.threads) if not thread.done()}


@functools.wraps(_execute_child)
def execute_child(self: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
    """Start a subprocess, which ends with the process whose code starts it."""
    _execute_child(self, *args, **options)
    process = acting_process()
    if process is not None:
        BELONGINGS.add_subprocess(process, Subprocess(self), _running_loop())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return next((loop for loop in tuple(_loops) if loop.is_running()), None)


def _not_for_agents(function: Any) -> Any:
    """A function that does nothing if an agent calls it: `pytest`, for example, does in each run."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options) if acting_process() is None else None

    return call
