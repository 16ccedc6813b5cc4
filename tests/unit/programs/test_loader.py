"""The program loader finds programs by name and by path, reloads changed files, and survives broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipc.errors import AgentFailed, UnknownProgram
from ipc.syscalls import Programs as ListPrograms
from kernel.programs.installed import InstalledPrograms
from kernel.programs.loader import ProgramLoader
from tests.support.system import System

AGENT = """
from llmosd import agent, Context

@agent
async def {name}(ctx: Context, n: int = {n}) -> int:
    "Answers {n}."
    return n
"""


def write(folder: Path, file: str, text: str, when: int = 1) -> Path:
    """A program file with `when` as its modification time."""
    path = folder / file
    path.write_text(text)
    os.utime(path, ns=(when, when))
    return path


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    found = ProgramLoader([tmp_path])
    found.installed = InstalledPrograms(tuple)
    return found


def test_a_program_is_found_by_the_name_of_its_coroutine(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path, "file.py", AGENT.format(name="worker", n=1))
    assert programs.by_name.get("worker") is None
    program = programs.load("worker")
    assert (program.name, program.summary, program.source) == ("worker", "Answers 1.", str(tmp_path / "file.py"))
    assert programs.by_name.get("worker") is program


def test_a_file_that_did_not_change_is_not_run_again(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    first = programs.load("a")
    programs.refresh()
    assert programs.by_name.get("a") is first


def test_a_file_that_changed_is_read_afresh(programs: ProgramLoader, tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    assert programs.load(str(path)).summary == "Answers 1."
    write(tmp_path, "a.py", AGENT.format(name="a", n=2), when=2_000_000_000)
    assert programs.load(str(path)).summary == "Answers 2."


def test_a_file_that_is_gone_is_forgotten(programs: ProgramLoader, tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    programs.load("a")
    path.unlink()
    programs.refresh()
    with pytest.raises(UnknownProgram):
        programs.load("a")


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "def (", "raise SystemExit(1)", "1 / 0"])
def test_a_broken_file_is_listed_with_its_error_and_harms_no_other(
    programs: ProgramLoader, tmp_path: Path, text: str
) -> None:
    path = write(tmp_path, "broken.py", text)
    write(tmp_path, "fine.py", AGENT.format(name="fine", n=1))
    programs.refresh()
    broken, fine = programs.listing()
    assert (broken.name, fine.name) == ("broken", "fine")
    assert str(path) in broken.error
    assert not fine.error
    with pytest.raises(AgentFailed, match="cannot be loaded"):
        programs.load("broken")
    programs.load("fine")


def test_a_broken_file_that_is_corrected_loads(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path, "a.py", "1 / 0")
    with pytest.raises(AgentFailed):
        programs.load("a")
    write(tmp_path, "a.py", AGENT.format(name="a", n=1), when=2_000_000_000)
    assert programs.load("a").name == "a"


def test_an_agent_with_parameters_that_have_no_name_is_a_broken_file(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path, "a.py", "from llmosd import agent\n@agent\nasync def a(ctx, *rest): ...\n")
    with pytest.raises(AgentFailed, match="cannot be given by name"):
        programs.load("a")


def test_private_files_and_imported_agents_are_no_programs(programs: ProgramLoader, tmp_path: Path) -> None:
    write(tmp_path, "_private.py", AGENT.format(name="private", n=1))
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    text = f"import importlib.util as u\ns = u.spec_from_file_location('x', {str(path)!r})\n"
    text += "m = u.module_from_spec(s)\ns.loader.exec_module(m)\na = m.a\n"
    write(tmp_path, "b.py", text)
    programs.refresh()
    assert [info.name for info in programs.listing()] == ["a"]


def test_a_path_runs_a_file_and_a_name_after_it_picks_one(programs: ProgramLoader, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    path = write(other, "two.py", AGENT.format(name="one", n=1) + AGENT.format(name="two", n=2))
    assert programs.load(f"{path}:two").name == "two"
    with pytest.raises(UnknownProgram, match="one, two; name one as"):
        programs.load(str(path))
    with pytest.raises(UnknownProgram, match="one, two"):
        programs.load(f"{path}:three")
    with pytest.raises(UnknownProgram, match="no file"):
        programs.load(str(other / "missing.py"))
    with pytest.raises(UnknownProgram, match="not a Python file"):
        programs.load(str(write(other, "notes.txt", "no code")))
    empty = write(other, "empty.py", "")
    with pytest.raises(UnknownProgram, match="mark a coroutine with @agent"):
        programs.load(str(empty))


def test_files_of_one_name_in_two_folders_do_not_mix(programs: ProgramLoader, tmp_path: Path) -> None:
    paths = []
    for n in (1, 2):
        folder = tmp_path / f"f{n}"
        folder.mkdir()
        paths.append(write(folder, "same.py", AGENT.format(name="same", n=n)))
    assert [programs.load(str(path)).summary for path in paths] == ["Answers 1.", "Answers 2."]


def test_a_later_folder_goes_over_an_earlier_one(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for n, folder in enumerate(folders):
        folder.mkdir()
        write(folder, "a.py", AGENT.format(name="a", n=n))
    programs = ProgramLoader(folders)
    assert programs.load("a").source == str(folders[1] / "a.py")


def test_an_unknown_name_is_told_with_the_known_ones_and_the_way_to_a_file(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    with pytest.raises(UnknownProgram, match=r"'b'; known: a\. A path such as \./b\.py"):
        programs.load("b")


async def test_the_list_of_programs_is_read_off_the_loop(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    write(folder, "a.py", AGENT.format(name="a", n=1))
    assert [(info.name, info.error) for info in await system.call(ListPrograms())] == [("a", "")]


def test_the_error_of_an_unknown_name_shows_the_broken_files_that_may_define_it_and_are_broken(
    programs: ProgramLoader, tmp_path: Path
) -> None:
    path = write(tmp_path, "a.py", "def b(ctx):\n    return (\n")
    with pytest.raises(UnknownProgram) as unknown:
        programs.load("b")
    assert f"{path} may define it, but cannot be loaded: SyntaxError: '(' was never closed" in unknown.value.message
