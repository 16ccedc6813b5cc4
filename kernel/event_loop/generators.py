"""The owners of asynchronous generators, which must be finished by a thread of the process that began them.

The guarded loop calls it. The garbage collector finishes a generator in the step of any process, and clears the weak
references to it right before. This module never prolongs the life of a generator.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from kernel.core.process import Process

MOST_CLEARED = 4096  # generators whose references are cleared; nearly all have ended and are never finished


class GeneratorOwners:
    """The process that began each generator."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[weakref.ref[Any], Process]] = {}  # by `id`
        self._cleared: dict[int, Process] = {}

    def remember(self, generator: AsyncGenerator[Any, Any], process: Process) -> None:
        """`process` begins this generator."""
        number = id(generator)
        self._owners[number] = weakref.ref(generator, partial(self._clear, number)), process

    def take(self, generator: AsyncGenerator[Any, Any]) -> Process | None:
        """The owner of a generator that the garbage collector finishes, and nothing for the kernel's own."""
        return self._cleared.pop(id(generator), None)

    def _clear(self, number: int, _: weakref.ref[Any]) -> None:
        _, self._cleared[number] = self._owners.pop(number)
        if len(self._cleared) > MOST_CLEARED:
            del self._cleared[next(iter(self._cleared))]
