"""A file that takes long or never ends, such as one that waits for a server, does not keep other programs from loading.

The files of these tests run until the test lets them go on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import AgentFailed, Busy
from kernel.programs import neighbours
from kernel.programs.loader import ProgramLoader
from kernel.programs.neighbours import FolderModules
from kernel.programs.turn import ATTEMPTS, Turn
from tests.support.program_files import agent_file, loader, write

HANG = "import gate_of_a_test\ngate_of_a_test.hang()\n"


class Gate:
    """The files that run now: `hang` holds them until `open` is set, and `began` reports the first one."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()

    def hang(self) -> None:
        self.began.set()
        assert self.open.wait(60)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setitem(sys.modules, "gate_of_a_test", gate)
    yield gate
    gate.open.set()


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    programs = loader(tmp_path / "agents")
    programs._turn = Turn(patience=0.01)
    return programs


def start(thread: ThreadPoolExecutor, gate: Gate, work: Any, *args: Any) -> Future[Any]:
    """Begin `work` in `thread`, and return when the file that it runs has begun."""
    began = thread.submit(work, *args)
    assert gate.began.wait(60)
    return began


def test_a_file_that_never_ends_keeps_no_other_program_from_loading(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    hangs = agent_file(tmp_path / "hangs.py", "hangs", before=HANG)
    other = agent_file(tmp_path / "other.py", "other")
    agent_file(tmp_path / "agents" / "a.py", "a")
    with ThreadPoolExecutor(1) as thread:
        hanging = start(thread, gate, programs.load, str(hangs))
        assert programs.load(str(other)).name == "other"
        assert programs.load("a").name == "a"
        gate.open.set()
        assert hanging.result().name == "hangs"


def test_a_file_in_a_folder_of_agents_that_never_ends_is_listed_with_its_error(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PATIENCE", 0.01)
    agent_file(tmp_path / "agents" / "a.py", "a")
    agent_file(tmp_path / "agents" / "hangs.py", "hangs", before=HANG)
    agent_file(tmp_path / "agents" / "z.py", "z")
    with ThreadPoolExecutor(1) as thread:
        refreshing = start(thread, gate, programs.refresh)
        programs.refresh()
        rows = {row.name: row.error for row in programs.listing()}
        assert set(rows) == {"a", "hangs", "z"}
        assert "hangs.py has been running for" in rows["hangs"]
        with pytest.raises(Busy, match=r"hangs\.py cannot be loaded yet: "):
            programs.load(str(tmp_path / "agents" / "hangs.py"))
        gate.open.set()
        refreshing.result()
    assert {row.name: row.error for row in programs.listing()} == {"a": "", "hangs": "", "z": ""}


def test_an_import_of_a_neighbour_that_never_ends_fails(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PATIENCE", 0.01)
    write(tmp_path / "helper.py", HANG)
    write(tmp_path / "user.py", "import helper\n")
    modules = FolderModules(str(tmp_path))
    with ThreadPoolExecutor(1) as thread:
        start(thread, gate, modules.load, "helper")
        with pytest.raises(ImportError, match=r"helper\.py has been running for \d+ s in another thread"):
            modules.load("user")
        gate.open.set()
    assert modules.load("user").complete


def test_a_file_that_is_corrected_while_its_old_version_hangs_loads(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    path = agent_file(tmp_path / "a.py", "a", before=HANG)
    with ThreadPoolExecutor(1) as thread:
        hanging = start(thread, gate, programs.load, str(path))
        agent_file(path, "a", when=2)
        program = programs.load(str(path))
        gate.open.set()
        assert hanging.result() is program


def test_a_file_that_failed_late_leaves_the_module_of_its_next_version(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    path = agent_file(tmp_path / "a.py", "a", before=f"{HANG}1 / 0")
    with ThreadPoolExecutor(1) as thread:
        hanging = start(thread, gate, programs.load, str(path))
        agent_file(path, "a", when=2)
        module = programs.load(str(path)).module
        gate.open.set()
        hanging.result()
    assert module is not None
    assert sys.modules[module.module.__name__] is module.module


def test_a_thread_that_loses_its_turn_again_and_again_is_refused() -> None:
    turn, attempts = Turn(patience=0), 0

    def take() -> None:
        turn.do(lambda: None)

    def slow() -> None:
        nonlocal attempts
        attempts += 1
        with turn.running("slow.py"):
            other = threading.Thread(target=take)
            other.start()
            other.join()

    with pytest.raises(Busy, match=r"at present slow\.py"):
        turn.do(slow)
    assert attempts == ATTEMPTS


def test_an_error_of_a_file_that_runs_in_its_turn_is_the_error_of_the_load(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    path = agent_file(tmp_path / "a.py", "a", before="1 / 0")
    with pytest.raises(AgentFailed, match="ZeroDivisionError"):
        programs.load(str(path))
