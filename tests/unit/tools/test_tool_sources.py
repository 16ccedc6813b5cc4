"""Sources of tools: settings and files, and the marks of their functions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ipc.errors import (
    ToolFailed,
)
from ipc.syscalls import Tools
from kernel.programs.installed import InstalledPrograms
from kernel.programs.loader import ProgramLoader
from kernel.programs.tool import ToolSpec, load
from llmosd import tool
from tests.support.system import System
from tests.support.tool_bench import Bench, use


async def test_a_configured_tool_is_loaded_at_its_first_call(
    system: System, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("some_tools")
    module.shout = lambda text: text.upper()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tools", module)
    bench.tools._configured = {
        "loud": ToolSpec(function="some_tools:shout", concurrency=2, retries=1),
        "gone": ToolSpec(function="some_tools:gone"),
    }

    def loud(text: str) -> str:
        return "the settings name another function"

    bench.add(loud)
    assert await system.run(use, "loud", {"text": "a"}) == "A"
    with pytest.raises(ToolFailed, match="some_tools:gone cannot be loaded"):
        await system.run(use, "gone")
    gone, loud = await system.call(Tools())
    assert (gone.name, "cannot be loaded" in gone.error) == ("gone", True)
    assert (loud.name, loud.signature, loud.concurrency, loud.retries, loud.calls) == ("loud", "(text)", 2, 1, 1)


def test_a_configured_function_keeps_what_its_mark_says_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    @tool(concurrency=3, retries=2)
    def marked() -> None:
        """Does nothing."""

    module = ModuleType("some_tools")
    module.marked = marked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tools", module)
    loaded = load("other", ToolSpec(function="some_tools:marked", retries=0))
    assert (loaded.name, loaded.mark.concurrency, loaded.mark.retries, loaded.mark.summary) == (
        "other",
        3,
        0,
        "Does nothing.",
    )


async def test_a_file_that_changed_brings_its_tools_anew_and_one_that_is_gone_takes_them(tmp_path: Path) -> None:
    programs = ProgramLoader([tmp_path])
    programs.installed = InstalledPrograms(tuple)
    path = tmp_path / "a.py"
    path.write_text("from llmosd import tool\n@tool\ndef one() -> int:\n    return 1\n")
    programs.refresh()
    assert set(programs.tools) == {"one"}
    path.write_text("from llmosd import tool\n@tool(name='two')\ndef one() -> int:\n    return 2222\n")
    os.utime(path, ns=(1, 1))
    programs.refresh()
    assert set(programs.tools) == {"two"}
    path.unlink()
    programs.refresh()
    assert programs.tools == {}


def test_only_functions_are_tools_and_their_numbers_are_checked() -> None:
    with pytest.raises(TypeError, match="a tool must be a function; 3 is not"):
        tool(3)  # type: ignore[call-overload]
    for how in ({"concurrency": 0}, {"timeout": -1.0}, {"retries": -1}, {"retrys": 1}):
        with pytest.raises(ValueError, match=r"Expected|unknown"):
            tool(**how)(lambda: None)  # type: ignore[call-overload]
