"""Instruments: how metrics, tracing and tests look inside the kernel without touching it.

Objects with any of the methods in `HOOKS`, as in trio (`trio.lowlevel.Instrument`), installed by the daemon or a test.
The kernel pays for the hooks that are installed alone. An instrument that raises is removed and logged; it never
fails what it looks at.

    before_step(thread)                a thread is about to run
    after_step(thread, seconds)        it has, until its next wait; `thread.state` says how that went
    state_changed(process, state)      a process was started ("new"), "suspended", resumed ("ready") or ended ("zombie")
    call_entered(process, call)        a system call that the process may make is about to be handled
    call_done(process, call, error)    it was answered (`error` is None), or raised
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

import structlog

from ipc.syscalls import Syscall
from kernel.core.process import Process, Thread

STEP_HOOKS = ("before_step", "after_step")
CALL_HOOKS = ("call_entered", "call_done")
HOOKS = (*STEP_HOOKS, "state_changed", *CALL_HOOKS)

Observe = Callable[[Callable[..., Any] | None], None]

log = structlog.get_logger("kernel.instruments")


class Instruments:
    """Those installed. `steps` and `states` are false while none wants to know of steps and of states.

    `observe` is `Gate.observe`; without it no calls are seen.
    """

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe_calls = observe
        self._hooks: dict[str, list[tuple[Any, Callable[..., None]]]] = {name: [] for name in HOOKS}
        self.steps = False
        self.states = False

    def add(self, instrument: Any) -> None:
        """Call the methods of `instrument` from now on. Raises `ValueError` if it has none of `HOOKS`."""
        found = [(name, getattr(instrument, name)) for name in HOOKS if hasattr(instrument, name)]
        if not found:
            raise ValueError(f"{instrument!r} has none of the methods of an instrument: {', '.join(HOOKS)}")
        for name, method in found:
            self._hooks[name].append((instrument, method))
        self._changed()

    def remove(self, instrument: Any) -> None:
        """Call it no more. Nothing if it is not installed."""
        for name in HOOKS:
            self._hooks[name] = [entry for entry in self._hooks[name] if entry[0] is not instrument]
        self._changed()

    # ---- for the kernel

    def tell(self, hook: str, *facts: Any) -> None:
        """Call the method `hook` of all who have it."""
        for instrument, method in self._hooks[hook]:
            try:
                method(*facts)
            except Exception:
                log.exception("an instrument raised and is removed", instrument=repr(instrument), hook=hook)
                self.remove(instrument)

    def tell_state(self, process: Process, state: str) -> None:
        """Tell those who want to know that `process` is in `state` now."""
        if self.states:
            self.tell("state_changed", process, state)

    def step(self, thread: Thread, start: float) -> float:
        """`thread.step`, observed."""
        self.tell("before_step", thread)
        end = thread.step(start)
        self.tell("after_step", thread, end - start)
        return end

    # ---- inside

    def _changed(self) -> None:
        self.steps = any(self._hooks[name] for name in STEP_HOOKS)
        self.states = bool(self._hooks["state_changed"])
        if self._observe_calls is not None:
            calls = any(self._hooks[name] for name in CALL_HOOKS)
            self._observe_calls(self._observe if calls else None)

    def _observe(self, handler: Callable[..., Any], process: Process, call: Syscall, *extra: Any) -> Any:
        self.tell("call_entered", process, call)
        try:
            answer = handler(process, call, *extra)
        except BaseException as error:
            self.tell("call_done", process, call, error)
            raise
        if type(answer) is CoroutineType:
            return self._observe_wait(answer, process, call)
        self.tell("call_done", process, call, None)
        return answer

    async def _observe_wait(self, answer: Coroutine[Any, Any, Any], process: Process, call: Syscall) -> Any:
        try:
            value = await answer
        except BaseException as error:
            self.tell("call_done", process, call, error)
            raise
        self.tell("call_done", process, call, None)
        return value
