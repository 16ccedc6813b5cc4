"""An agent or a tool whose parameters cannot be used is listed with the reason, and hides no other of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.errors import AgentFailed, ToolFailed
from ipc.syscalls import Tools, UseTool
from kernel.programs.installed import InstalledPrograms
from kernel.programs.loader import ProgramLoader
from tests.support.program_files import HEADER, loader, write
from tests.support.system import System
from tests.support.tool_bench import Bench

UNUSABLE = {
    "ctx, *rest": "TypeError: bad: parameter *rest cannot be given by name",
    "ctx, **rest": "TypeError: bad: parameter **rest cannot be given by name",
    "ctx, one, /": "TypeError: bad: parameter one cannot be given by name",
    "ctx, one: Missing": "NameError: name 'Missing' is not defined",
    "ctx, one: 1 / 0": "ZeroDivisionError: division by zero",
    "ctx, one: 5 = 5": "TypeError",
    "ctx, one=Odd()": "ValueError: no text",
}
ODD = "class Odd:\n    def __repr__(self): raise ValueError('no text')\n"


def agents(path: Path, parameters: str) -> Path:
    """Write a file with an agent that has these parameters, and another one."""
    text = f"from __future__ import annotations\n{HEADER}{ODD}"
    for name, given in {"bad": parameters, "good": "ctx"}.items():
        text += f"@agent\nasync def {name}({given}): return 1\n"
    return write(path, text)


@pytest.fixture
def programs(tmp_path: Path) -> ProgramLoader:
    return loader(tmp_path)


@pytest.mark.parametrize("parameters", UNUSABLE)
def test_the_other_agents_of_the_file_can_be_run_and_the_unusable_one_is_listed_with_the_reason(
    programs: ProgramLoader, tmp_path: Path, parameters: str
) -> None:
    path = agents(tmp_path / "a.py", parameters)
    assert programs.load("good").name == "good"
    rows = {row.name: row.error for row in programs.listing()}
    assert rows["good"] == ""
    assert UNUSABLE[parameters] in rows["bad"]
    assert programs.load(f"{path}:good").name == "good"
    for name in ("bad", f"{path}:bad"):
        with pytest.raises(AgentFailed, match="bad") as failed:
            programs.load(name)
        assert UNUSABLE[parameters] in failed.value.message


def test_an_unusable_agent_of_the_file_of_its_caller_is_named(programs: ProgramLoader, tmp_path: Path) -> None:
    path = agents(tmp_path / "elsewhere" / "a.py", "ctx, *rest")
    with pytest.raises(
        AgentFailed, match=r"program bad in .*a\.py cannot be loaded:\nTypeError: bad: parameter \*rest"
    ):
        programs.load("bad", programs.load(f"{path}:good"))


def test_an_unusable_agent_beside_the_file_of_its_caller_is_named(programs: ProgramLoader, tmp_path: Path) -> None:
    agents(tmp_path / "helpers" / "helper.py", "ctx, *rest")
    caller = programs.load(str(write(tmp_path / "helpers" / "a.py", f"{HEADER}@agent\nasync def a(ctx): ...\n")))
    assert programs.load("helper:good", caller).name == "good"
    with pytest.raises(AgentFailed, match=r"helper:bad cannot be run: TypeError: bad: parameter \*rest"):
        programs.load("helper:bad", caller)


def test_an_unusable_agent_of_an_installed_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agents(tmp_path / "installed_for_a_test.py", "ctx, *rest")
    monkeypatch.syspath_prepend(str(tmp_path))
    programs = loader()
    programs.installed = InstalledPrograms(tuple)
    assert programs.load("installed_for_a_test:good").name == "good"
    with pytest.raises(AgentFailed, match=r"installed_for_a_test:bad cannot be run: TypeError: bad: parameter \*rest"):
        programs.load("installed_for_a_test:bad")


async def test_an_unusable_tool_hides_no_other_and_is_listed_with_the_reason(system: System, tmp_path: Path) -> None:
    system.programs._folders = [tmp_path]
    Bench(system)  # time stands still while a tool runs
    text = f"{HEADER}@tool\ndef bad(*rest): ...\n@tool\ndef good() -> int: return 1\n@agent\nasync def a(ctx): ...\n"
    write(tmp_path / "a.py", text)
    rows = {row.name: row.error for row in await system.call(Tools())}
    assert rows == {"good": "", "bad": "TypeError: bad: parameter *rest cannot be given by name"}
    assert await system.call(UseTool("good", {})) == 1
    with pytest.raises(ToolFailed, match=r"tool bad in .*a\.py cannot be used: TypeError"):
        await system.call(UseTool("bad", {}))
    assert system.programs.find("a") is not None
