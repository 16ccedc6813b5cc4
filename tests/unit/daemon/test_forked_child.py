"""The places at which a forked child ends itself exist in the code that they name."""

from __future__ import annotations

from kernel.core import fiber
from kernel.core.fiber import Fiber
from llmosd.daemon.forked_child import END_OF_STEP, ENTRANCES


def test_every_place_at_which_a_forked_child_ends_itself_exists_and_is_called_by_its_name() -> None:
    for owner, name in ENTRANCES:
        assert callable(getattr(owner, name))
    assert callable(getattr(fiber, END_OF_STEP))
    assert END_OF_STEP in Fiber.step.__code__.co_names
