"""Fixtures of the tests of models: the agents that call them, and a machine that knows their sizes."""

from __future__ import annotations

import pytest

from tests.support.agents import teller
from tests.support.many_models import prepare
from tests.support.system import System


@pytest.fixture
def with_teller(system: System) -> None:
    """The program `teller` is installed."""
    system.program(teller)


@pytest.fixture
def with_sizes(system: System) -> None:
    """The program `teller` is installed, and each of several models has a size on the machine."""
    prepare(system)
