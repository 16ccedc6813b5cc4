"""A forked child ends itself at places that exist, and waits for no lock of a thread that it lacks."""

from __future__ import annotations

import asyncio
import threading

from kernel.core import fiber
from kernel.core.fiber import Fiber
from kernel.processes.printing import Printing
from llmosd.daemon.forked_child import END_OF_STEP, ENTRANCES


def test_every_place_at_which_a_forked_child_ends_itself_exists_and_is_called_by_its_name() -> None:
    for owner, name in ENTRANCES:
        assert callable(getattr(owner, name))
    assert callable(getattr(fiber, END_OF_STEP))
    assert END_OF_STEP in Fiber.step.__code__.co_names


async def test_a_child_does_not_wait_for_a_lock_of_a_thread_that_it_lacks() -> None:
    printing = Printing(asyncio.get_running_loop())
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with printing._room:
            held.set()
            over.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    printing.after_fork()
    printing.close()
    over.set()
    other.join()
