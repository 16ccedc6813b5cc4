"""Programs and tools of installed packages: those that entry points name, and any other agent as `MODULE:AGENT`.

Used by the program loader, in jobs, because it imports packages. A package that changes is read again only by the next
run of the daemon. An entry point that cannot be loaded is remembered with its error.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import msgspec

from ipc.abi import AGENT_ATTRIBUTE, TOOL_ATTRIBUTE, AgentMark, ToolMark
from ipc.errors import AgentFailed, UnknownProgram
from ipc.syscalls import ProgramInfo
from kernel.lib.failures import traceback_text
from kernel.programs.jobs import TimeLimit
from kernel.programs.program import Function, Program, marked_in, unusable
from kernel.programs.tool import Tool

ENTRY_POINTS = "llmosd.agents"


def installed_entry_points() -> Iterable[EntryPoint]:
    """The entry points of this Python environment that name agents or tools."""
    return entry_points(group=ENTRY_POINTS)


def text_of_entry(entry: EntryPoint) -> str:
    """The function that `entry` names, and its package."""
    return f"{entry.value} ({entry.dist.name if entry.dist else 'unknown'})"


class InstalledPrograms:
    """The programs and tools of installed packages. `broken` are the entry points that cannot be loaded, by name.

    `pending` are the entry points that have not been loaded yet; None before they were read.
    """

    def __init__(self, find: Callable[[], Iterable[EntryPoint]] = installed_entry_points) -> None:
        self.find = find
        self.pending: list[EntryPoint] | None = None
        self.programs: list[Program] = []  # of entry points
        self.tools: list[Tool] = []
        self.broken: dict[str, ProgramInfo] = {}
        self._nearby: dict[str, dict[str, Program]] = {}  # the programs of each module that was imported, by name
        self._unusable: dict[str, str] = {}  # why an agent cannot be run, by its address

    def load_entry_point(self, entry: EntryPoint) -> None:
        """Import the module of an entry point."""
        source = text_of_entry(entry)
        try:
            function = entry.load()
            mark = getattr(function, TOOL_ATTRIBUTE, None) or getattr(function, AGENT_ATTRIBUTE)
            if isinstance(mark, ToolMark):
                self.tools.append(Tool(function, msgspec.structs.replace(mark, name=entry.name), source))
                return
            mark = msgspec.structs.replace(mark, name=entry.name)
            nearby = self._programs_in(sys.modules[function.__module__])
            self.programs.append(Program(function, mark, source, address=entry.value, nearby=nearby))
        except TimeLimit:
            raise
        except BaseException as error:
            self.broken[entry.name] = ProgramInfo(entry.name, "", "", source, traceback_text(error))

    def import_programs(self, address: str) -> dict[str, Program]:
        """Import the module of `MODULE:AGENT`, and return its programs by name.

        Raises `UnknownProgram`, and `AgentFailed` if the module cannot be imported.
        """
        name = address.partition(":")[0]
        try:
            return self._programs_in(importlib.import_module(name))
        except TimeLimit:
            raise
        except BaseException as error:
            missing = isinstance(error, ModuleNotFoundError) and (name == error.name or f"{error.name}." in name)
            if missing or isinstance(error, TypeError | ValueError):  # no module, or no name of a module
                raise UnknownProgram(f"no program {address!r}: there is no module {name!r}", program=address) from None
            raise AgentFailed(f"module {name} cannot be imported:\n{traceback_text(error)}", program=address) from error

    def chosen(self, address: str, programs: dict[str, Program]) -> Program:
        """The program that `address` names among those of its module. Raises `UnknownProgram` and `AgentFailed`."""
        name, _, wanted = address.partition(":")
        if wanted in programs:
            return programs[wanted]
        if address in self._unusable:
            raise AgentFailed(f"program {address} cannot be run: {self._unusable[address]}", program=address)
        known = ", ".join(sorted(programs)) or "none"
        raise UnknownProgram(f"no program {address!r}; agents in module {name}: {known}", program=address)

    def _programs_in(self, module: ModuleType) -> dict[str, Program]:
        """The agents that an installed module defines, by their names and by the names of their functions."""
        nearby = self._nearby.get(module.__name__)
        if nearby is None:
            nearby = {}
            agents, _ = marked_in(module)
            for by_mark in (False, True):  # the name of an agent takes precedence over that of a function
                for function, mark in agents:
                    name = mark.name if by_mark else function.__name__
                    program = self._program(function, mark, f"{module.__name__}:{name}", nearby)
                    if program is not None:
                        nearby[name] = program
            self._nearby[module.__name__] = nearby
        return nearby

    def _program(self, function: Function, mark: AgentMark, address: str, nearby: dict[str, Program]) -> Program | None:
        """The program of `function`; None if its parameters cannot be used."""
        try:
            return Program(function, mark, address, address=address, nearby=nearby)
        except BaseException as error:
            self._unusable[address] = unusable(error)
            return None
