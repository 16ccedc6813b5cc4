"""Where code may be interrupted: the decision of the watchdog, by the frames of the code that runs.

An error may be raised in code of an agent: in a step of its thread, in a callback that the loop calls, and, after twice
the time, in a method such as `__eq__` that the kernel calls. It is never raised in the kernel itself, nor in a library
that the kernel calls. A module that is being imported gets much more time, because it would stay half loaded.
"""

from __future__ import annotations

import sys
from types import FrameType

from kernel.core.process import Thread
from kernel.event_loop.callbacks import CALLED_BY_THE_LOOP
from kernel.event_loop.guarded import CALLED_BY_PYTHON

KERNELS = frozenset({"kernel", "ipc", "llmosd"})
IMPORTS = "importlib"
LONGER_FOR_METHODS = 2.0  # bursts
LONGER_FOR_IMPORTS = 30.0  # bursts
BOUNDARIES = CALLED_BY_THE_LOOP | {CALLED_BY_PYTHON}  # the loop calls what is inside these


class Interruptible:
    """Decides for one watchdog. `start` notes which libraries the daemon uses itself."""

    def __init__(self) -> None:
        self._libraries: frozenset[str] = frozenset()

    def start(self) -> None:
        self._libraries = frozenset(name.partition(".")[0] for name in tuple(sys.modules))  # threads import now

    def now(self, frame: FrameType | None, thread: Thread | None, bursts: float) -> bool:
        """Whether an error may be raised in `frame`, in the step of `thread` or in a callback, after so many bursts."""
        outermost = None if thread is None else getattr(thread.get_coro(), "cr_frame", None)
        innermost, of_agent, enough = frame, False, True
        while frame is not None:
            package = _package(frame)
            if package in KERNELS:
                if frame.f_code in BOUNDARIES:
                    return enough and (frame is not innermost or frame.f_code in CALLED_BY_THE_LOOP)  # a function in C
                return of_agent and bursts >= LONGER_FOR_METHODS and enough
            if package == IMPORTS:
                if not of_agent:
                    return False
                enough = bursts >= LONGER_FOR_IMPORTS
            if frame is outermost:
                return enough
            of_agent = of_agent or package not in self._libraries
            frame = frame.f_back
        return False


def callback_frame(frame: FrameType | None) -> FrameType | None:
    """The frame of the function that the loop has called and that runs now. None: the loop waits."""
    inside = None
    while frame is not None and frame.f_code is not CALLED_BY_PYTHON:
        inside, frame = frame, frame.f_back
    return inside if frame is not None else None


def place(frame: FrameType | None) -> str:
    """FILE:LINE of the innermost frame that is not the kernel's."""
    while frame is not None and _package(frame) in KERNELS:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
