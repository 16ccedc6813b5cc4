"""Fixtures of the tests of tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import System
from tests.support.tool_bench import Bench, Hanging


@pytest.fixture
def bench(system: System) -> Bench:
    return Bench(system)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.go.set()
