"""Instruments: objects through which metrics, tracing and tests observe the kernel without changing it.

An instrument is an object with some of the methods in `HOOKS`, as in trio (`trio.lowlevel.Instrument`). The daemon or a
test installs it. Hooks without an instrument cost nothing. An instrument that raises is logged and removed; its error
never reaches the code that it observes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

import structlog

from ipc.foreign import shown
from ipc.syscalls import Syscall
from kernel.core.process import Process, Thread

STEP_HOOKS = ("before_step", "after_step")
CALL_HOOKS = ("call_entered", "call_done")
HOOKS = (*STEP_HOOKS, "state_changed", *CALL_HOOKS)

Observe = Callable[[Callable[..., Any] | None], None]

log = structlog.get_logger("kernel.instruments")


class Instruments:
    """The installed instruments. `steps` and `states` say whether any of them observes steps and states.

        before_step(thread)                a thread is about to run
        after_step(thread, seconds)        the thread ran until its next wait; see `thread.state`
        state_changed(process, state)      a process is "new", "suspended", "ready" (resumed) or "zombie" (ended)
        call_entered(process, call)        the handler of a permitted system call is about to run
        call_done(process, call, error)    the call was answered (`error` is None), or raised `error`

    `observe` is `Gate.observe`. Without `observe`, no instrument sees calls.
    """

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe_calls = observe
        self._hooks: dict[str, list[tuple[Any, Callable[..., None]]]] = {name: [] for name in HOOKS}
        self.steps = False
        self.states = False

    def add(self, instrument: Any) -> None:
        """Call the methods of `instrument` from now on. Raises `ValueError` if it has no method in `HOOKS`."""
        found = [(name, getattr(instrument, name)) for name in HOOKS if hasattr(instrument, name)]
        if not found:
            raise ValueError(f"{shown(instrument)} has none of the methods of an instrument: {', '.join(HOOKS)}")
        for name, method in found:
            self._hooks[name].append((instrument, method))
        self._update()

    def remove(self, instrument: Any) -> None:
        """Stop calling `instrument`. Does nothing if it is not installed."""
        for name in HOOKS:
            self._hooks[name] = [entry for entry in self._hooks[name] if entry[0] is not instrument]
        self._update()

    # ---- for the kernel

    def notify_state(self, process: Process, state: str) -> None:
        """Report to the instruments that observe states: `process` is in `state` now."""
        if self.states:
            self._notify("state_changed", process, state)

    def step(self, thread: Thread, start: float) -> float:
        """Run `thread.step`, and report it to the instruments that observe steps."""
        self._notify("before_step", thread)
        end = thread.step(start)
        self._notify("after_step", thread, end - start)
        return end

    # ---- inside

    def _notify(self, hook: str, *facts: Any) -> None:
        """Call the method `hook` of every instrument that has it."""
        for instrument, method in self._hooks[hook]:
            try:
                method(*facts)
            except Exception:
                log.exception("an instrument raised an error and was removed", instrument=shown(instrument), hook=hook)
                self.remove(instrument)

    def _update(self) -> None:
        self.steps = any(self._hooks[name] for name in STEP_HOOKS)
        self.states = bool(self._hooks["state_changed"])
        if self._observe_calls is not None:
            calls = any(self._hooks[name] for name in CALL_HOOKS)
            self._observe_calls(self._observe if calls else None)

    def _observe(self, handler: Callable[..., Any], process: Process, call: Syscall, *extra: Any) -> Any:
        self._notify("call_entered", process, call)
        try:
            answer = handler(process, call, *extra)
        except BaseException as error:
            self._notify("call_done", process, call, error)
            raise
        if type(answer) is CoroutineType:
            return self._observe_wait(answer, process, call)
        self._notify("call_done", process, call, None)
        return answer

    async def _observe_wait(self, answer: Coroutine[Any, Any, Any], process: Process, call: Syscall) -> Any:
        try:
            value = await answer
        except BaseException as error:
            self._notify("call_done", process, call, error)
            raise
        self._notify("call_done", process, call, None)
        return value
