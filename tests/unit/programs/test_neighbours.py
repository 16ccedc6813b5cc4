"""An agent file imports the modules beside it, each folder its own, and no other code sees them."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import AgentFailed
from kernel.programs.loader import ProgramLoader
from kernel.programs.neighbours import FolderModules
from kernel.programs.program import Program
from tests.support.program_files import agent_file, loader, write


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    return loader(tmp_path)


def run(program: Program) -> Any:
    """The value that the agent returns without a context."""
    return asyncio.run(program.function(None))


# ---- which module a name means


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("import helper", "helper.N == 1"),
        ("import helper as other", "other.N == 1"),
        ("from helper import N", "N == 1"),
        ("from helper import *", "N == 1"),
        ("from . import helper", "helper.N == 1"),
        ("from .helper import N", "N == 1"),
        ("helper = __import__('helper')", "helper.N == 1"),
        ("import pkg", "pkg.N == 2"),
        ("import pkg.sub", "(pkg.N, pkg.sub.N) == (2, 3)"),
        ("import pkg.sub as sub", "sub.N == 3"),
        ("from pkg import sub", "sub.N == 3"),
        ("from pkg import N, sub", "(N, sub.N) == (2, 3)"),
        ("from pkg import *", "sub.N == 3"),
        ("from pkg.sub import N", "N == 3"),
        ("from .pkg.sub import N", "N == 3"),
        ("from pkg.sub import helper, M", "(helper.N, M) == (1, 2)"),
    ],
)
def test_a_neighbour_is_imported_by_any_statement(
    programs: ProgramLoader, tmp_path: Path, statement: str, value: str
) -> None:
    write(tmp_path / "helper.py", "N = 1\n")
    write(tmp_path / "pkg" / "__init__.py", "N = 2\n__all__ = ['sub']\n")
    write(tmp_path / "pkg" / "other.py", "from ..helper import N\nfrom pkg import N as M\n")
    write(tmp_path / "pkg" / "sub.py", "from .. import helper\nfrom .other import M\nN = 3\n")
    path = agent_file(tmp_path / "a.py", "a", f"return {value}", before=statement)
    assert run(programs.load(str(path)))


def test_two_folders_with_a_helper_each_get_their_own(tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path / str(n) / "helper.py", f"N = {n}\n")
        agent_file(tmp_path / str(n) / f"a{n}.py", f"a{n}", "import helper; return helper.N")
    programs = loader(tmp_path / "1", tmp_path / "2")
    assert [run(programs.load(f"a{n}")) for n in (1, 2, 1)] == [1, 2, 1]


def test_a_helper_can_import_a_helper_and_files_of_a_folder_share_one_module(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    write(tmp_path / "base.py", "class Order: pass\n")
    write(tmp_path / "helper.py", "from base import Order\n")
    agent_file(tmp_path / "a.py", "a", "return Order", before="from helper import Order")
    agent_file(tmp_path / "b.py", "b", "return Order", before="from base import Order")
    assert run(programs.load("a")) is run(programs.load("b"))


def test_files_that_import_each_other_load(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "helper.py", "import a\ndef look():\n    return a.N\n")
    agent_file(tmp_path / "a.py", "a", "return helper.look()", before="import helper\nN = 1")
    assert run(programs.load("a")) == 1


def test_a_neighbour_with_the_name_of_a_standard_module_changes_no_import_of_that_name(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    write(tmp_path / "json.py", "N = 1\n")
    write(tmp_path / "llmosd.py", "N = 1\n")
    agent_file(
        tmp_path / "a.py", "a", "return json.loads('2'), own.N", before="import json, email\nfrom . import json as own"
    )
    assert run(programs.load("a")) == (2, 1)


def test_a_neighbour_goes_over_an_installed_package_but_a_file_does_not_import_itself(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    agent_file(tmp_path / "msgspec.py", "one", "return msgspec.__version__", before="import msgspec\nN = 1")
    agent_file(tmp_path / "a.py", "a", "return msgspec.N", before="import msgspec")
    import msgspec

    assert run(programs.load("one")) == msgspec.__version__
    assert run(programs.load("a")) == 1


def test_no_other_code_sees_a_neighbour(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "helper.py", "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "return helper.N", before="import helper")
    path, importer = list(sys.path), __import__
    programs.load("a")
    assert sys.path == path
    assert __import__ is importer
    assert "helper" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("helper")


def test_an_import_in_a_function_finds_the_neighbour_from_any_thread(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "helper.py", "N = 1\n")
    text = "@tool\ndef look() -> int:\n    from helper import N\n    return N\n"
    agent_file(tmp_path / "a.py", "a", before=text)
    programs.load("a")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(programs.tools["look"].function).result() == 1


def test_threads_that_import_a_neighbour_at_the_same_time_run_it_once(programs: ProgramLoader, tmp_path: Path) -> None:
    text = "import os\nos.sched_yield()\nwith open(__file__ + '.runs', 'a') as runs:\n    runs.write('.')\n"
    write(tmp_path / "_helper.py", text)
    agent_file(tmp_path / "a.py", "a", "import _helper; return _helper")
    program, start = programs.load("a"), threading.Barrier(4)

    def import_it(_: int) -> Any:
        start.wait()
        return run(program)

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(import_it, range(4)))) == 1
    assert (tmp_path / "_helper.py.runs").read_text() == "."


def test_annotations_dataclasses_and_pickles_of_a_neighbour_work(programs: ProgramLoader, tmp_path: Path) -> None:
    text = """
from __future__ import annotations
import dataclasses, pickle, typing

@dataclasses.dataclass
class Point:
    x: Number
    kind: typing.ClassVar[str] = "point"

Number = int

def check():
    assert typing.get_type_hints(Point)["x"] is int
    return pickle.loads(pickle.dumps(Point(3))).x
"""
    write(tmp_path / "shapes.py", text)
    agent_file(tmp_path / "a.py", "a", "return shapes.check()", before="import shapes")
    assert run(programs.load("a")) == 3


def test_a_file_in_a_folder_whose_name_contains_py_can_be_run(programs: ProgramLoader, tmp_path: Path) -> None:
    path = agent_file(tmp_path / ".pyenv" / "x.py" / "a-b.c.py", "a", "return 1")
    assert run(programs.load(f"{path}:a")) == 1


def test_the_tools_of_a_neighbour_are_known(programs: ProgramLoader, tmp_path: Path) -> None:
    write(
        tmp_path / "elsewhere" / "tools.py",
        "from llmosd import tool\n@tool\ndef double(n: int) -> int:\n return 2 * n\n",
    )
    path = agent_file(tmp_path / "elsewhere" / "a.py", "a", before="from tools import double")
    programs.load(str(path))
    assert programs.tools["double"].function(n=2) == 4
    programs.refresh()
    assert set(programs.tools) == {"double"}


# ---- errors


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("\n1 / 0\n", 2, "ZeroDivisionError"),
        ("\n\ndef (\n", 3, "SyntaxError"),
        ("import nothing_of_that_name\n", 1, "No module named 'nothing_of_that_name'"),
        ("from .nothing import x\n", 1, "No module named 'nothing' in "),
        ("from ..nothing import x\n", 1, "a relative import cannot leave the folder of the program"),
        ("from a import nothing\n", 1, "cannot import name 'nothing'"),
        ("import a.nothing\n", 1, "No module named 'a.nothing'; 'a' is not a package"),
    ],
)
def test_an_error_in_a_helper_names_its_file_and_line_and_no_line_of_the_loader(
    programs: ProgramLoader, tmp_path: Path, text: str, line: int, error: str
) -> None:
    path = write(tmp_path / "helper.py", text)
    agent_file(tmp_path / "a.py", "a", before="import helper")
    with pytest.raises(AgentFailed) as failed:
        programs.load(str(tmp_path / "a.py"))
    assert f'"{path}", line {line}' in failed.value.message
    assert error in failed.value.message
    assert "kernel/programs" not in failed.value.message


@pytest.mark.parametrize("wrong", ["1 / 0", "def (", "import missing", None])
def test_a_helper_that_is_corrected_loads(programs: ProgramLoader, tmp_path: Path, wrong: str | None) -> None:
    if wrong is not None:
        write(tmp_path / "_helper.py", wrong)
    agent_file(tmp_path / "a.py", "a", "return _helper.N", before="import _helper")
    for _ in range(2):
        with pytest.raises(AgentFailed):
            programs.load("a")
    write(tmp_path / "_helper.py", "N = 1\n", when=2)
    assert run(programs.load("a")) == 1


def test_a_folder_without_init_is_no_package_and_the_error_says_so(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "utilities" / "sub.py", "")
    agent_file(tmp_path / "a.py", "a", before="from utilities.sub import x")
    with pytest.raises(AgentFailed, match=r"the folder utilities in .* needs an __init__\.py"):
        programs.load("a")


# ---- several threads


WAIT = "import threads_of_a_test\nthreads_of_a_test.wait()\n"


@pytest.fixture
def barrier(monkeypatch: pytest.MonkeyPatch) -> threading.Barrier:
    """A barrier for two threads that program files pass: see `WAIT`."""
    barrier = threading.Barrier(2, timeout=60)
    monkeypatch.setitem(sys.modules, "threads_of_a_test", barrier)
    return barrier


def test_threads_that_import_modules_which_import_each_other_do_not_block(
    tmp_path: Path, barrier: threading.Barrier
) -> None:
    write(tmp_path / "one.py", f"{WAIT}import two\nN = 1\n")
    write(tmp_path / "two.py", f"{WAIT}import one\nN = 2\n")
    modules = FolderModules(str(tmp_path))
    with ThreadPoolExecutor(2) as threads:
        loaded = [module.module for module in threads.map(modules.load, ["one", "two"])]
    assert [module.N for module in loaded] == [1, 2]
    assert [loaded[0].two, loaded[1].one] == loaded[::-1]


def test_a_thread_does_not_wait_for_a_file_that_it_does_not_import(tmp_path: Path, barrier: threading.Barrier) -> None:
    write(tmp_path / "slow.py", WAIT)
    write(tmp_path / "quick.py", "N = 1\n")
    modules = FolderModules(str(tmp_path))
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(modules.load, "slow")
        assert modules.load("quick").complete
        assert not slow.done()
        barrier.wait()
        assert slow.result().complete


def test_a_thread_that_waits_for_a_file_that_fails_runs_it_itself(tmp_path: Path, barrier: threading.Barrier) -> None:
    once = "import os\nif not os.path.exists(__file__ + '.ran'):\n    open(__file__ + '.ran', 'w').close()\n"
    write(tmp_path / "fails.py", once + textwrap.indent(f"{WAIT}1 / 0\n", "    "))
    modules = FolderModules(str(tmp_path))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(modules.load, "fails")
        while not modules._progress.loading and not first.done():
            os.sched_yield()
        second = threads.submit(modules.load, "fails")
        while not modules._progress.waiting and not second.done():
            os.sched_yield()
        barrier.wait()
        with pytest.raises(ZeroDivisionError):
            first.result()
        assert second.result().complete
    assert (modules._progress.loading, modules._progress.waiting) == ({}, {})
