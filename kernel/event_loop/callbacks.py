"""Callbacks of agents: what the loop calls for a process, outside the threads of that process.

The guarded loop wraps each callback, and each factory of protocols, that an agent hands to it. `SystemExit` ends the
process and not the daemon, and no code of a process is called once the process has ended. Callbacks of asyncio itself
are: another process may await what they complete, such as a `gather`. A callback of the kernel is never wrapped.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any

from kernel.core.process import Process
from kernel.event_loop.belongings import BELONGINGS
from kernel.programs.origin import ORIGIN

OURS = ("kernel.", "ipc.")  # the kernel's own callbacks; `llmosd.context` is what agents call

Exited = Callable[[Process, BaseException], None]


def is_kernels(callback: Any) -> bool:
    """Whether `callback` is a function or method of the kernel."""
    if type(callback) is MethodType:
        callback = callback.__func__
    while isinstance(callback, functools.partial):
        callback = callback.func
    module = getattr(callback, "__module__", None)
    return type(module) is str and module.startswith(OURS)


def _is_of_asyncio(callback: Any) -> bool:
    module = getattr(callback, "__module__", None)
    return type(module) is str and module.startswith("asyncio.")


def run_for(process: Process, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function` for `process`: the tasks that it makes, and what it hands to the loop, belong to the process."""
    token = ORIGIN.set(process)
    try:
        return function(*args)
    finally:
        ORIGIN.reset(token)


class AgentCallback:
    """A callback of `process`. It calls `exited` if the callback raises `SystemExit` or `KeyboardInterrupt`."""

    __slots__ = ("callback", "exited", "process")

    def __init__(self, callback: Callable[..., Any], process: Process, exited: Exited) -> None:
        self.callback = callback
        self.process = process
        self.exited = exited

    def __call__(self, *args: Any) -> None:
        if self.process.status is not None and not _is_of_asyncio(self.callback):
            return
        try:
            self.callback(*args)
        except (SystemExit, KeyboardInterrupt) as error:
            self.exited(self.process, error)

    def __repr__(self) -> str:
        return repr(self.callback)


class ProtocolFactory:
    """Makes protocols of `process`, and adds them and their transports to its belongings."""

    __slots__ = ("exited", "factory", "loop", "process")

    def __init__(
        self, factory: Callable[[], Any], process: Process, exited: Exited, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.factory = factory
        self.process = process
        self.exited = exited
        self.loop = loop

    def __call__(self) -> Any:
        if self.process.status is not None:
            raise ConnectionAbortedError(f"process {self.process.pid} has ended")
        try:
            protocol = self.factory()
        except (SystemExit, KeyboardInterrupt) as error:
            self.exited(self.process, error)
            raise ConnectionAbortedError(f"process {self.process.pid} ends: {error!r}") from None
        BELONGINGS.own(protocol, self.process)
        self._watch(protocol)
        return protocol

    def _watch(self, protocol: Any) -> None:
        """Put a method of ours before `connection_made`, for one call. Not possible with `__slots__`."""
        original = getattr(protocol, "connection_made", None)

        def connection_made(transport: Any) -> None:
            with suppress(AttributeError):
                del protocol.connection_made  # it refers to the protocol, which must not refer to it for long
            BELONGINGS.add(self.process, transport, self.loop)
            try:
                if original is not None:
                    run_for(self.process, original, transport)  # the loop may call it without an owner
            except (SystemExit, KeyboardInterrupt) as error:
                self.exited(self.process, error)

        if isinstance(protocol, asyncio.BaseProtocol):
            with suppress(AttributeError):
                protocol.connection_made = connection_made  # type: ignore[method-assign]


CALLED_BY_THE_LOOP = frozenset({AgentCallback.__call__.__code__, ProtocolFactory.__call__.__code__})
