"""The setup of hypothesis and torch, and a few fixtures for unit and system tests. No test imports from here."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from kernel.drivers.transformers.__main__ import share_the_cores

hypothesis.settings.register_profile("llmosd", deadline=None)  # other work on the machine would break a deadline
hypothesis.settings.load_profile("llmosd")
share_the_cores()  # as the driver does, before a test imports torch
# `nohup`, and `&` in a script, let a command and all that it starts ignore these. Daemons of tests must receive them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave trials that have no short form, `@pytest.mark.soak(short=False)`, to `make soak`."""
    if os.environ.get("LLMOS_SOAK"):
        return
    long = [item for item in items if any(mark.kwargs.get("short") is False for mark in item.iter_markers("soak"))]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape half characters in a report, such as in the log of a test, since xdist sends reports as UTF-8."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
        case _:
            return value


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="llmosd-test-") as path:
        yield Path(path)


@pytest.fixture
def trial() -> Callable[..., int]:
    """Picks the size of a trial: `short` in `make test`, `long` in `make soak`."""

    def rounds(*, short: int, long: int) -> int:
        return long if os.environ.get("LLMOS_SOAK") else short

    return rounds
