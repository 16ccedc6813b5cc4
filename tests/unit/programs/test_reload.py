"""A changed neighbour reloads the agent files that use it and changes their version; running code stays as it was."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import UnknownProgram
from kernel.programs.loader import ProgramLoader
from kernel.programs.neighbours import PREFIX
from kernel.programs.program import Program
from tests.support.program_files import agent_file, loader, write


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    return loader(tmp_path)


def run(program: Program) -> Any:
    """The value that the agent returns without a context."""
    return asyncio.run(program.function(None))


# ---- reloading


@pytest.mark.parametrize("changed", ["a.py", "_helper.py", "_base.py", "_pkg/__init__.py", "_pkg/sub.py"])
def test_a_change_to_any_file_that_an_agent_file_imports_reloads_it(
    programs: ProgramLoader, tmp_path: Path, changed: str
) -> None:
    write(tmp_path / "_base.py", "N = 1\n")
    write(tmp_path / "_helper.py", "from _base import N as BASE\nN = 1\n")
    write(tmp_path / "_pkg" / "__init__.py", "N = 1\n")
    write(tmp_path / "_pkg" / "sub.py", "N = 1\n")
    body = "return N + _helper.N + _helper.BASE + _pkg.N + _pkg.sub.N"
    agent_file(tmp_path / "a.py", "a", body, before="import _helper, _pkg.sub\nN = 1")
    agent_file(tmp_path / "b.py", "b")
    before, other = programs.load("a"), programs.load("b")
    text = (tmp_path / changed).read_text()
    write(tmp_path / changed, text.replace("N = 1", "N = 2"), when=2)
    assert run(programs.load("a")) == 6
    assert programs.load("a").version != before.version
    assert programs.load("b") is other


@pytest.mark.parametrize("way", ["in place", "by a file of the same time"])
def test_a_change_is_seen_where_size_and_time_stay_the_same(programs: ProgramLoader, tmp_path: Path, way: str) -> None:
    helper = tmp_path / "_helper.py"
    write(helper, "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "return _helper.N", before="import _helper")
    assert run(programs.load("a")) == 1
    before = helper.stat()
    changed = helper if way == "in place" else tmp_path / "new"
    while not changed.exists() or changed.stat().st_ctime_ns == before.st_ctime_ns:  # in a later tick of the clock
        changed.write_text("N = 2\n")
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed.replace(helper)
    assert run(programs.load("a")) == 2


def test_a_change_of_the_size_alone_is_seen(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "_helper.py", "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "return _helper.N", before="import _helper")
    programs.load("a")
    write(tmp_path / "_helper.py", "N = 12\n")
    assert run(programs.load("a")) == 12


def test_a_change_within_one_second_that_keeps_the_size_is_seen(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "_helper.py", "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "return _helper.N", before="import _helper")
    programs.load("a")
    write(tmp_path / "_helper.py", "N = 2\n", when=2)
    assert run(programs.load("a")) == 2


def test_a_package_that_takes_the_place_of_a_module_is_seen(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "_helper.py", "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "return _helper.N", before="import _helper")
    programs.load("a")
    write(tmp_path / "_helper" / "__init__.py", "N = 2\n")
    assert run(programs.load("a")) == 2


def test_a_file_run_by_path_reloads_with_its_helper(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "helper.py", "N = 1\n")
    path = agent_file(tmp_path / "elsewhere" / "a.py", "a", "return helper.N", before="import helper")
    first = programs.load(str(path))
    assert programs.load(str(path)) is first
    write(tmp_path / "elsewhere" / "helper.py", "N = 2\n", when=2)
    assert (run(first), run(programs.load(str(path)))) == (1, 2)


def test_modules_that_a_change_does_not_affect_stay_loaded(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path / "_stable.py", "THINGS = []\n")
    write(tmp_path / "_helper.py", "N = 1\n")
    before = "import _helper, _stable"
    agent_file(tmp_path / "a.py", "a", "_stable.THINGS.append(_helper.N); return _stable.THINGS", before=before)
    agent_file(tmp_path / "b.py", "b", "return _stable.THINGS", before="import _stable")
    run(programs.load("a"))
    b = programs.load("b")
    write(tmp_path / "_helper.py", "N = 2\n", when=2)
    run(programs.load("a"))
    assert programs.load("b") is b
    assert run(b) == [1, 2]


def test_code_that_runs_keeps_its_version_also_of_modules_that_it_imports_later(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    write(tmp_path / "_base.py", "N = 1\n")
    write(tmp_path / "_helper.py", "from _base import N\n")
    agent_file(tmp_path / "a.py", "a", "import _helper, _base; return _helper.N, _base.N")
    old = programs.load("a")
    write(tmp_path / "_base.py", "N = 2\n", when=2)
    assert run(programs.load("a")) == (2, 2)
    assert run(old) == (1, 1)
    assert run(programs.load("a")) == (2, 2)


def test_a_helper_that_is_gone_breaks_its_users_and_code_that_runs_keeps_it(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    helper = write(tmp_path / "_helper.py", "N = 1\n")
    agent_file(tmp_path / "a.py", "a", "import _helper; return _helper.N")
    old = programs.load("a")
    helper.unlink()
    with pytest.raises(ModuleNotFoundError):
        run(programs.load("a"))
    assert run(old) == 1


def test_changes_and_files_that_are_gone_leave_no_modules_behind(tmp_path: Path) -> None:
    def modules() -> set[str]:
        return {name for name in sys.modules if name.startswith(PREFIX)}

    programs, before = loader(), modules()
    versions = []
    for n in range(5):
        write(tmp_path / "x" / "helper.py", f"N = {n}\n", when=n)
        path = agent_file(tmp_path / "x" / f"a{n}.py", "a", "return helper.N", before="import helper")
        versions.append(weakref.ref(programs.load(str(path)).function))
        path.unlink()
    assert len(modules() - before) <= 2
    (tmp_path / "x" / "helper.py").unlink()
    programs.refresh()
    assert modules() <= before
    assert programs._modules == programs._files == {}
    gc.collect()
    assert [version() for version in versions] == [None] * 5
    with pytest.raises(UnknownProgram):
        programs.load(str(path))


# ---- versions


def test_the_version_of_a_file_without_neighbours_is_the_digest_of_its_text(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    path = agent_file(tmp_path / "a.py", "a", before="import os, msgspec\nfrom llmosd import Limits")
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    assert programs.load("a").version == digest


def test_the_version_depends_on_the_text_of_all_neighbours_and_on_nothing_else(tmp_path: Path) -> None:
    versions = set()
    for order, folder in ((["a", "b"], tmp_path / "1"), (["b", "a"], tmp_path / "moved" / "2")):
        for name, text in {"_x": "import _y\n", "_y": "N = 1\n", "_z": "N = 2\n"}.items():
            write(folder / f"{name}.py", text, when=len(versions))
        agent_file(folder / "a.py", "a", "import _z; return _z.N", before="import _x")
        agent_file(folder / "b.py", "b", before="import _y, _z")
        programs = loader(folder)
        found = {name: programs.load(str(folder / f"{name}.py")) for name in order}
        versions.add(found["a"].version)
        run(found["a"])
        assert loader(folder).load("a").version == found["a"].version
    assert len(versions) == 1
    for name in ("_x", "_y", "_z"):
        with (folder / f"{name}.py").open("a") as file:
            file.write("# a comment\n")
        versions.add(loader(folder).load("a").version)
    assert len(versions) == 4


def test_the_version_is_of_the_text_that_runs(programs: ProgramLoader, tmp_path: Path) -> None:
    text = "import os, pathlib\nchanged = pathlib.Path(__file__)\nchanged.write_text(changed.read_text() + '#')\n"
    path = agent_file(tmp_path / "a.py", "a", before=text)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    assert programs.load("a").version == digest


def test_a_file_that_could_not_be_read_is_read_again(
    programs: ProgramLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = write(tmp_path / "_helper.py", "N = 1\n")
    path = agent_file(tmp_path / "a.py", "a", "import _helper; return _helper.N")
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == helper:
            raise PermissionError(13, os.strerror(13), str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match="_helper"):
        run(programs.load(str(path)))
    monkeypatch.undo()
    assert run(programs.load(str(path))) == 1
