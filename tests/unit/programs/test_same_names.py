"""Programs with one name are all listed, with a warning and a way to run each; so are entry points that are broken."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipc.errors import AgentFailed, UnknownProgram
from kernel.programs.installed import ENTRY_POINTS, InstalledPrograms
from kernel.programs.loader import ProgramLoader
from kernel.programs.program import Program
from tests.support.program_files import HEADER, agent_file, loader, write


def run(program: Program) -> Any:
    """The value that the agent returns without a context."""
    return asyncio.run(program.function(None))


def with_entry_points(programs: ProgramLoader, **values: str) -> ProgramLoader:
    entries = [EntryPoint(name, value, ENTRY_POINTS) for name, value in values.items()]
    programs.installed = InstalledPrograms(lambda: entries)
    return programs


def warnings(programs: ProgramLoader) -> list[tuple[str, str]]:
    return [(info.source, info.warning) for info in programs.listing() if info.name == "same"]


# ---- two programs with one name


def test_of_two_folders_the_later_one_has_the_name_and_either_can_be_run(tmp_path: Path) -> None:
    first = agent_file(tmp_path / "1" / "a.py", "same", "return 1")
    second = agent_file(tmp_path / "2" / "b.py", "same", "return 2")
    programs = loader(tmp_path / "1", tmp_path / "2")
    assert run(programs.load("same")) == 2
    assert [run(programs.load(f"{path}:same")) for path in (first, second)] == [1, 2]
    assert warnings(programs) == [
        (str(second), ""),
        (str(first), f"{second}:same has the same name and hides it; run it as {first}:same"),
    ]


def test_the_log_has_one_warning_until_the_programs_of_that_name_change(tmp_path: Path) -> None:
    first = agent_file(tmp_path / "1" / "a.py", "same")
    second = agent_file(tmp_path / "2" / "b.py", "same")
    agent_file(tmp_path / "2" / "c.py", "alone")
    programs = loader(tmp_path / "1", tmp_path / "2")
    with capture_logs() as lines:
        for _ in range(3):
            programs.refresh()
    assert [(line["log_level"], line["name"], line["runs"], line["hidden"]) for line in lines] == [
        ("warning", "same", f"{second}:same", [f"{first}:same"])
    ]
    first.unlink()
    with capture_logs() as lines:
        programs.refresh()
    assert (lines, warnings(programs)) == ([], [(str(second), "")])
    agent_file(tmp_path / "1" / "a.py", "same")
    with capture_logs() as lines:
        programs.refresh()
    assert len(lines) == 1


def test_tools_with_one_name_are_reported_once_and_a_tool_that_two_files_import_is_one_tool(tmp_path: Path) -> None:
    text = "from llmosd import tool\n@tool\ndef same(): return 1\n"
    first, second = write(tmp_path / "a.py", text), write(tmp_path / "b.py", text)
    write(tmp_path / "_shared.py", text.replace("same", "alone"))
    agent_file(tmp_path / "c.py", "c", before="import _shared")
    agent_file(tmp_path / "d.py", "d", before="import _shared")
    programs = loader(tmp_path)
    with capture_logs() as lines:
        for _ in range(2):
            programs.refresh()
    assert set(programs.tools) == {"same", "alone"}
    assert [(line["event"], line["name"], line["runs"], line["hidden"]) for line in lines] == [
        ("tools have the same name", "same", str(second), [str(first)])
    ]


def test_of_two_agents_in_one_file_the_last_has_the_name_and_the_function_names_the_other(tmp_path: Path) -> None:
    text = "@agent(name='same')\nasync def {}(ctx):\n    return {}\n"
    path = write(tmp_path / "a.py", HEADER + text.format("one", 1) + text.format("two", 2))
    programs = loader(tmp_path)
    assert run(programs.load("same")) == 2
    assert [run(programs.load(f"{path}:{name}")) for name in ("same", "one", "two")] == [2, 1, 2]
    assert warnings(programs) == [
        (str(path), ""),
        (str(path), f"{path}:same has the same name and hides it; run it as {path}:one"),
    ]


def test_a_folder_goes_over_an_entry_point_which_its_value_names(tmp_path: Path) -> None:
    path = agent_file(tmp_path / "agents" / "a.py", "same", "return 'folder'")
    value = "tests.support.installed_agents:installed"
    programs = with_entry_points(loader(tmp_path / "agents"), same=value)
    assert run(programs.load("same")) == "folder"
    assert run(programs.load(value)) == "package"
    assert warnings(programs) == [
        (str(path), ""),
        (f"{value} (unknown)", f"{path}:same has the same name and hides it; run it as {value}"),
    ]


# ---- installed programs


def test_an_agent_of_an_installed_module_needs_no_entry_point_and_finds_its_own_file() -> None:
    programs = loader()
    program = programs.load("tests.support.installed_agents:other name")
    assert (program.name, program.source) == ("other name", "tests.support.installed_agents:other name")
    assert programs.load("tests.support.installed_agents:named") is not None
    assert programs.load("installed", program).name == "installed"
    with pytest.raises(UnknownProgram, match="installed, named, other name"):
        programs.load("tests.support.installed_agents:nobody")
    with pytest.raises(UnknownProgram, match=r"there is no module 'tests\.support\.nothing'"):
        programs.load("tests.support.nothing:agent")


def test_an_entry_point_that_cannot_be_loaded_is_listed_with_its_error_each_time(tmp_path: Path) -> None:
    values = {"gone": "tests.support.nothing:agent", "wrong": "tests.support.installed_agents:N"}
    programs = with_entry_points(loader(tmp_path), fine="tests.support.installed_agents:installed", **values)
    for _ in range(3):
        programs.refresh()
        assert [(info.name, bool(info.error)) for info in programs.listing()] == [
            ("fine", False),
            ("gone", True),
            ("wrong", True),
        ]
        with pytest.raises(AgentFailed, match=r"No module named 'tests\.support\.nothing'"):
            programs.load("gone")
