"""A file that takes long or never ends, such as one that waits for a server, does not keep other programs from loading.

The files of these tests run until the test lets them go on, except those that compute until they are interrupted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import AgentFailed, Busy
from kernel.programs import jobs, loader, neighbours
from kernel.programs.jobs import LoaderJob, NotYet
from kernel.programs.loader import ProgramLoader
from kernel.programs.neighbours import FolderModules
from tests.support import program_files
from tests.support.program_files import agent_file, write
from tests.support.system import System

HANG = "import gate_of_a_test\ngate_of_a_test.begin()\nassert gate_of_a_test.open.wait(60)\n"  # in its third line
SPIN = "import gate_of_a_test\ngate_of_a_test.begin()\nwhile True: pass\n"
MANY = 32  # files that never end
GUARD = 60  # seconds after which a test has failed


class Gate:
    """Holds the files of a test until `open` is set. `count`: how many have begun to run."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.count = 0
        self.open = threading.Event()

    def begin(self) -> None:
        self.count += 1
        self.began.release()

    def wait(self) -> None:
        assert self.began.acquire(timeout=GUARD)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setitem(sys.modules, "gate_of_a_test", gate)
    monkeypatch.setattr(jobs, "PATIENCE", 0.01)
    monkeypatch.setattr(loader, "LISTED_AFTER", 0.0)
    before = set(jobs._running)
    yield gate
    gate.open.set()
    for job in set(jobs._running) - before:
        assert job.wait(GUARD)


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    return program_files.loader(tmp_path / "agents")


def begin(programs: ProgramLoader, name: Path | str) -> LoaderJob[Any]:
    """Begin to load a program whose file hangs. Returns the job of the file."""
    since = 0.0
    while True:
        with pytest.raises(NotYet) as pending:
            programs.look(str(name), None, since)
        for job in pending.value.jobs:
            if job.what.endswith(f"{Path(name).stem}.py"):
                return job
            assert job.wait(GUARD)  # a look at the disk, which may take longer than the patience of this test


def rows(programs: ProgramLoader) -> dict[str, str]:
    """The errors of all programs, when no look at the disk goes on."""
    while pending := [job for job in programs.look_everywhere(0.0) if not job.what.endswith(".py")]:
        for job in pending:
            assert job.wait(GUARD)
    return {row.name: row.error for row in programs.listing()}


def reach(job: LoaderJob[Any], place: str) -> None:
    """Return when the job is at `place`."""
    end = time.monotonic() + GUARD
    while not job.described().endswith(place):
        assert time.monotonic() < end, job.described()
        os.sched_yield()


def overdue(job: LoaderJob[Any]) -> LoaderJob[Any]:
    """Let the time limit of a job pass."""
    job._time_out()
    return job


def test_a_file_that_never_ends_keeps_no_other_program_from_loading(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    hangs = agent_file(tmp_path / "hangs.py", "hangs", before=HANG)
    other = agent_file(tmp_path / "other.py", "other")
    agent_file(tmp_path / "agents" / "a.py", "a")
    begin(programs, hangs)
    assert programs.load(str(other)).name == "other"
    assert programs.load("a").name == "a"
    gate.open.set()
    assert programs.load(str(hangs)).name == "hangs"
    assert gate.count == 1


def test_files_that_never_end_hold_one_thread_each_and_a_listing_names_where_they_are(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    folder = tmp_path / "agents"
    for n in range(MANY):
        agent_file(folder / f"hangs{n}.py", f"h{n}", before=HANG)
    agent_file(folder / "z.py", "z")
    for _ in range(MANY):
        rows(programs)
        gate.wait()
    for job in programs._jobs._jobs.values():
        if job.what.endswith("z.py"):
            assert job.wait(GUARD)  # it was slower than the patience of this test
        elif job.folder is None:
            reach(job, ".py:4")
    for _ in range(3):
        found = rows(programs)
        assert found.pop("z") == ""
        assert len(found) == MANY
        assert all(
            re.search(rf"/{name}\.py has been running for \d+ s, at .*/{name}\.py:4$", found[name]) for name in found
        )
    assert gate.count == MANY
    gate.open.set()
    assert programs.load("h3").name == "h3"


def test_more_files_that_never_end_than_there_are_threads_are_refused_by_name(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = agent_file(tmp_path / "agents" / "a.py", "a")
    assert programs.load("a").name == "a"
    begin(programs, agent_file(tmp_path / "hangs.py", "hangs", before=HANG))
    monkeypatch.setattr(jobs, "MAX_FILES", 1)
    other = agent_file(tmp_path / "other.py", "other")
    with pytest.raises(Busy, match=r"^1 files have begun .* which is the limit\. One of them: .*hangs\.py"):
        programs.load(str(other))
    assert programs.load(str(loaded)).name == "a"
    assert rows(programs) == {"a": ""}


def test_a_file_that_exceeds_its_limit_fails_at_once_and_is_usable_when_it_ends_at_last(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE", 0.01)
    path = agent_file(tmp_path / "agents" / "slow.py", "slow", before=HANG)
    job = begin(programs, path)
    reach(job, "slow.py:4")
    overdue(job)
    for name in ("slow", str(path)):
        with pytest.raises(Busy, match=r"slow\.py has been running for \d+ s, at .*slow\.py:4; it may never end"):
            programs.load(name)
    assert "slow.py:4; it may never end" in rows(programs)["slow"]
    assert gate.count == 1
    gate.open.set()
    while rows(programs)["slow"]:
        pass
    assert programs.load("slow").name == "slow"
    assert gate.count == 1


def test_a_caller_waits_for_its_file_until_the_limit(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LIMIT", 0.05)
    monkeypatch.setattr(jobs, "GRACE", 0.01)
    with pytest.raises(Busy, match="it may never end"):
        programs.load(str(agent_file(tmp_path / "hangs.py", "hangs", before=HANG)))


def test_a_file_that_computes_for_ever_is_interrupted_and_not_run_again_until_it_changes(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE", GUARD)
    path = agent_file(tmp_path / "agents" / "spins.py", "spins", before=SPIN)
    job = begin(programs, path)
    reach(job, "spins.py:4")
    overdue(job)
    for name in ("spins", str(path)):
        with pytest.raises(
            AgentFailed, match=r"spins\.py ran for 60 s and was interrupted, at .*spins\.py:4; change it"
        ):
            programs.load(name)
    assert gate.count == 1
    assert job not in jobs._running
    agent_file(path, "spins", when=2)
    assert programs.load("spins").name == "spins"


def test_a_change_of_a_file_that_hangs_or_of_a_file_that_it_imports_loads_it_again(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    helper = write(tmp_path / "agents" / "_helper.py", HANG)
    path = agent_file(tmp_path / "agents" / "a.py", "a", before="import _helper")
    reach(begin(programs, path), "_helper.py:3")
    write(helper, "N = 1\n", when=2)
    program = programs.load("a")
    gate.open.set()
    assert programs.load(str(path)) is program
    assert program.module is not None
    assert sys.modules[program.module.module.__name__] is program.module.module


def test_a_change_of_another_file_does_not_run_a_file_that_hangs_again(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    path = agent_file(tmp_path / "agents" / "hangs.py", "hangs", before=HANG)
    other = agent_file(tmp_path / "agents" / "other.py", "other")
    user = agent_file(tmp_path / "agents" / "user.py", "user", "import hangs; return hangs")
    begin(programs, path)
    assert programs.load("other").name == "other"
    agent_file(other, "other", "return 2", when=2)
    version = programs.load("other").version
    assert programs.load(str(user)).name == "user"
    gate.open.set()
    assert programs.load("hangs").module is programs.load("user").module.folder.load("hangs")  # type: ignore[union-attr]
    assert programs.load("other").version == version
    assert gate.count == 1


def test_a_file_that_failed_late_leaves_the_module_of_its_next_version(
    programs: ProgramLoader, tmp_path: Path, gate: Gate
) -> None:
    path = agent_file(tmp_path / "a.py", "a", before=f"{HANG}1 / 0")
    hanging = begin(programs, path)
    agent_file(path, "a", when=2)
    module = programs.load(str(path)).module
    gate.open.set()
    assert hanging.wait(GUARD)
    assert module is not None
    assert sys.modules[module.module.__name__] is module.module


def test_an_import_of_a_neighbour_that_never_ends_fails(
    programs: ProgramLoader, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "agents" / "_helper.py", HANG)
    agent_file(tmp_path / "agents" / "first.py", "first", before="import _helper")
    second = agent_file(tmp_path / "agents" / "second.py", "second", before="import _helper")
    reach(begin(programs, tmp_path / "agents" / "first.py"), "_helper.py:3")
    monkeypatch.setattr(neighbours, "LIMIT", 0.0)
    with pytest.raises(
        Busy, match=r"second\.py cannot be loaded yet: .*_helper\.py has been running for .* at .*_helper"
    ):
        programs.load(str(second))
    monkeypatch.setattr(neighbours, "LIMIT", float(GUARD))
    gate.open.set()
    assert programs.load("second").name == "second"


async def test_an_import_on_the_loop_that_never_ends_fails_and_the_loop_goes_on(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "LOOP_PATIENCE", 0.01)
    write(tmp_path / "helper.py", HANG)
    modules = FolderModules(str(tmp_path))
    for _ in range(2):
        with pytest.raises(ImportError, match=r"helper has been running for|helper\.py has been running for"):
            modules.load("helper")
    gate.open.set()
    monkeypatch.setattr(neighbours, "LOOP_PATIENCE", GUARD)
    assert modules.load("helper").complete
    assert gate.count == 1


async def test_clients_that_wait_for_files_that_hang_hold_no_thread(
    system: System, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "WORKERS", 1)
    system.programs._workers._most = 1
    paths = [agent_file(tmp_path / f"h{n}.py", f"h{n}", before=HANG) for n in range(5)]
    waiting = [
        system.thread(system.programs.in_worker(lambda since, path=path: system.programs.look(str(path), None, since)))  # type: ignore[misc]
        for path in paths
    ]
    other = str(agent_file(tmp_path / "other.py", "other"))
    found = await system.thread(system.programs.in_worker(lambda since: system.programs.look(other, None, since)))
    assert found.name == "other"
    gate.open.set()
    assert [(await one).name for one in waiting] == ["h0", "h1", "h2", "h3", "h4"]


def test_a_disk_that_hangs_makes_one_folder_unavailable_and_the_programs_of_its_files_stay(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    agent_file(slow / "a.py", "a")
    agent_file(quick / "b.py", "b")
    programs = program_files.loader(slow, quick)
    programs.refresh()
    assert rows(programs) == {"a": "", "b": ""}
    list_files = loader.list_files

    def hang(folder: Path) -> list[Path]:
        if folder == slow:
            gate.begin()
            assert gate.open.wait(GUARD)
        return list_files(folder)

    monkeypatch.setattr(loader, "list_files", hang)
    agent_file(quick / "b.py", "c", when=2)
    assert programs.load("c").name == "c"
    found = {row.name: row.error for row in programs.listing()}
    assert (found["a"], found["c"]) == ("", "")
    for _ in range(10):
        with pytest.raises(NotYet) as pending:
            programs.look(str(slow / "a.py"), None, time.monotonic())
    assert [job.folder for job in pending.value.jobs] == [slow]
    assert sum(job.folder == slow for job in jobs._running) == 1
    assert f"{slow} has been running for" in found["slow"]


def test_an_error_of_a_file_is_the_error_of_the_load(programs: ProgramLoader, tmp_path: Path) -> None:
    path = agent_file(tmp_path / "a.py", "a", before="1 / 0")
    with pytest.raises(AgentFailed, match="ZeroDivisionError"):
        programs.load(str(path))


TRACED = """
import sys, threading
from pathlib import Path
from kernel.programs import jobs

jobs.GRACE = {grace}
begun, go = threading.Event(), threading.Event()
code = compile({code!r}, "/agents/slow.py", "exec")
job = jobs.LoaderJob("a file", lambda: exec(code, {{"__name__": "slow", "begun": begun, "go": go}}))
assert begun.wait(60)
if {late}:
    job._time_out()
go.set()
assert job.wait(60)

def called():
    return "done"

sys.settrace(lambda *_: None)
print(called())
"""


@pytest.mark.parametrize(
    ("code", "grace", "late"),
    [
        ("begun.set(); go.wait()", 0.01, True),
        ("begun.set()\nwhile True: pass", GUARD, True),
        ("begun.set(); go.wait()", GUARD, False),
    ],
    ids=["it notices no limit", "it is interrupted", "it ends in time"],
)
def test_python_looks_for_no_errors_of_threads_after_the_end_of_a_file(code: str, grace: float, late: bool) -> None:
    """Otherwise each call of every thread is slow, and a traced function of Python 3.11 never begins."""
    script = TRACED.format(code=code, grace=grace, late=late)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
