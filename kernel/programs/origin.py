"""The origin of the code that runs now: the process, or the file that is being loaded, whose printed text it makes.

The lifecycle, the tool subsystem and the program loader set the origin; `kernel.processes.printing` reads it. It is a
context variable, which `asyncio.to_thread` passes on to its thread, so text from that thread finds its process. A plain
`threading.Thread` starts without it. This module never prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any

ORIGIN: ContextVar[Any] = ContextVar("origin", default=None)  # a `Process`, the path of a file, or None: unknown


@contextmanager
def printing_for(file: str) -> Iterator[None]:
    """Attribute the text that is printed in the block to `file`."""
    token = ORIGIN.set(file)
    try:
        yield
    finally:
        with suppress(Exception):  # text that still lacks its newline
            sys.stdout.flush()
            sys.stderr.flush()
        ORIGIN.reset(token)


def without_origin() -> Context:
    """A copy of the context variables without an origin, for a task of the kernel that a step of an agent makes."""
    context = copy_context()
    context.run(ORIGIN.set, None)
    return context
