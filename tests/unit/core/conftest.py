"""Fixtures of the tests of the core."""

from __future__ import annotations

from typing import Any

import pytest

from kernel.core.mailbox import Mailbox
from tests.support.agents import idle


@pytest.fixture
async def box(system: Any) -> Mailbox:
    """The mailbox, with room for two, of a process that receives nothing by itself."""
    system.target = system.spawn(idle)
    await system.turns()
    system.target.mailbox = Mailbox(2)
    return system.target.mailbox
