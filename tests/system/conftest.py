"""Fixtures of the system tests: they start real daemons, which end with the test. No test imports from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon
from tests.support.daemon import eventually as wait_for


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Starts daemons with the simulated model."""
    daemons: list[RunningDaemon] = []

    def start(
        *flags: str, environment: dict[str, str] | None = None, ready: bool = True, output: int | None = None
    ) -> RunningDaemon:
        model = () if "--model" in flags else ("--model", "simulated")
        daemons.append(RunningDaemon(folder, *model, *flags, environment=environment, output=output))
        return daemons[-1].wait_until_ready() if ready else daemons[-1]

    yield start
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
def agents(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A folder with one file of agents: the `AGENTS` of the test module."""
    agents = folder / "agents"
    agents.mkdir()
    (agents / "some.py").write_text(request.module.AGENTS)
    return agents


@pytest.fixture
def launch(start: Callable[..., RunningDaemon], agents: Path, folder: Path) -> Callable[..., RunningDaemon]:
    """Starts daemons with the agents of the test module and with given settings, all on the same state folder."""

    def launch(settings: str = "", *flags: str, **options: object) -> RunningDaemon:
        config = folder / "llmosd.toml"
        config.write_text(settings)
        return start("--agents", str(agents), "--config", str(config), *flags, **options)

    return launch


@pytest.fixture
def daemon(start: Callable[..., RunningDaemon]) -> RunningDaemon:
    """A daemon with the simulated model."""
    return start()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits for a condition that another process makes true."""
    return wait_for
