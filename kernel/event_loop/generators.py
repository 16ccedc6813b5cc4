"""The owners of asynchronous generators, which must be finished by a thread of the process that began them.

The guarded loop calls it. The garbage collector finishes a generator in the step of any process, and clears the weak
references to it right before. This module never prolongs the life of a generator or of a process.
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
        self._owners: dict[int, tuple[weakref.ref[Any], weakref.ref[Process]]] = {}  # by `id`
        self._cleared: dict[int, weakref.ref[Process]] = {}

    def remember(self, generator: AsyncGenerator[Any, Any], process: Process) -> None:
        """`process` begins this generator."""
        number = id(generator)
        self._owners[number] = weakref.ref(generator, partial(self._clear, number)), weakref.ref(process)

    def forget(self, generator: AsyncGenerator[Any, Any]) -> None:
        """The kernel begins this generator, which may have the `id` of one that has ended."""
        self._cleared.pop(id(generator), None)

    def take(self, generator: AsyncGenerator[Any, Any]) -> tuple[bool, Process | None]:
        """Whether a process began the generator that the garbage collector finishes, and which one if it exists."""
        owner = self._cleared.pop(id(generator), None)
        return owner is not None, None if owner is None else owner()

    def _clear(self, number: int, _: weakref.ref[Any]) -> None:
        _, self._cleared[number] = self._owners.pop(number)
        if len(self._cleared) > MOST_CLEARED:
            del self._cleared[next(iter(self._cleared))]
