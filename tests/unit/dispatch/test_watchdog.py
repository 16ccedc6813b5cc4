"""The watchdog at a tick: it raises an error only to interrupt an agent, whatever fails inside the watchdog itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from kernel.dispatch.dispatcher import Dispatcher
from kernel.dispatch.watchdog import Watchdog
from kernel.event_loop.signals import SIGNALS, SignalGuard


@pytest.fixture
async def watchdog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """A watchdog that believes it runs; no signal calls it."""
    watchdog = Watchdog(Dispatcher(asyncio.get_running_loop()), 0.1, 0.1, lambda *_: None, Counter())
    monkeypatch.setattr(watchdog, "_running", True)
    return watchdog


def frame() -> FrameType:
    return sys._getframe(1)


async def test_a_failure_at_a_tick_is_logged_and_never_raised_in_the_code_that_runs(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("the check fails")

    monkeypatch.setattr(SIGNALS, "check", fails)
    watchdog.tick(0, frame())
    await asyncio.sleep(0)
    assert "the watchdog failed at a tick" in capsys.readouterr().out
    monkeypatch.undo()


async def test_a_tick_that_has_no_room_on_the_stack_interrupts_the_agent_all_the_same(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RecursionError

    with monkeypatch.context() as patch:
        patch.setattr(SIGNALS, "check", fails)
        with pytest.raises(RecursionError):
            watchdog.tick(0, frame())
    watchdog.tick(0, frame())


async def test_a_tick_within_a_tick_does_nothing(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = []

    def check(*_: Any) -> None:
        ticks.append(1)
        watchdog.tick(0, frame())

    monkeypatch.setattr(SIGNALS, "check", check)
    watchdog.tick(0, frame())
    watchdog.tick(0, frame())
    assert len(ticks) == 2


class Alarms(dict[int, Any]):
    """The alarms in use. Each look at them is interrupted by a tick that releases a signal or protects it again."""

    def __init__(self, guard: SignalGuard) -> None:
        super().__init__()
        self._guard = guard
        self._protected = False

    def __contains__(self, number: object) -> bool:
        self._protected = not self._protected
        (self._guard.protect if self._protected else self._guard.release)(signal.SIGALRM)
        return False


async def test_the_protected_signals_may_change_while_they_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = SignalGuard()
    guard.protect(signal.SIGUSR1)
    monkeypatch.setattr(guard, "_alarms", Alarms(guard))
    guard.check(None, asyncio.get_running_loop())
