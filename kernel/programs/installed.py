"""Programs and tools of installed packages: those that entry points name, and any other agent as `MODULE:AGENT`.

Used by the program loader, in worker threads, because it imports packages. A package that changes is read again only
by the next run of the daemon. An entry point that cannot be loaded is remembered with its error.
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
from kernel.programs.program import Function, Program, marked_in
from kernel.programs.tool import Tool
from kernel.programs.traces import load_error

ENTRY_POINTS = "llmosd.agents"


def installed_entry_points() -> Iterable[EntryPoint]:
    """The entry points of this Python environment that name agents or tools."""
    return entry_points(group=ENTRY_POINTS)


class InstalledPrograms:
    """The programs and tools of installed packages. `broken` are the entry points that cannot be loaded, by name."""

    def __init__(self, find: Callable[[], Iterable[EntryPoint]] = installed_entry_points) -> None:
        self._find: Callable[[], Iterable[EntryPoint]] | None = find
        self.programs: list[Program] = []  # of entry points
        self.tools: list[Tool] = []
        self.broken: dict[str, ProgramInfo] = {}
        self._nearby: dict[str, dict[str, Program]] = {}  # the programs of each module that was imported, by name

    def load_entry_points(self) -> None:
        """Load all entry points, the first time that it is called."""
        find, self._find = self._find, None
        for entry in () if find is None else find():
            source = f"{entry.value} ({entry.dist.name if entry.dist else 'unknown'})"
            try:
                function = entry.load()
                mark = getattr(function, TOOL_ATTRIBUTE, None) or getattr(function, AGENT_ATTRIBUTE)
                if isinstance(mark, ToolMark):
                    self.tools.append(Tool(function, msgspec.structs.replace(mark, name=entry.name), source))
                    continue
                mark = msgspec.structs.replace(mark, name=entry.name)
                nearby = self._programs_in(sys.modules[function.__module__])
                self.programs.append(Program(function, mark, source, address=entry.value, nearby=nearby))
            except BaseException as error:
                self.broken[entry.name] = ProgramInfo(entry.name, "", "", source, load_error(error))

    def load(self, address: str) -> Program:
        """The program that `address` names: the value of an entry point, or `MODULE:AGENT`.

        Imports the module. Raises `UnknownProgram`, and `AgentFailed` if the module cannot be imported.
        """
        for program in self.programs:
            if program.address == address:
                return program
        name, _, wanted = address.partition(":")
        try:
            nearby = self._programs_in(importlib.import_module(name))
        except BaseException as error:
            missing = isinstance(error, ModuleNotFoundError) and (name == error.name or f"{error.name}." in name)
            if missing or isinstance(error, TypeError | ValueError):  # no module, or no name of a module
                raise UnknownProgram(f"no program {address!r}: there is no module {name!r}", program=address) from None
            raise AgentFailed(f"module {name} cannot be imported:\n{load_error(error)}", program=address) from error
        if wanted not in nearby:
            known = ", ".join(sorted(nearby)) or "none"
            raise UnknownProgram(f"no program {address!r}; agents in module {name}: {known}", program=address)
        return nearby[wanted]

    def _programs_in(self, module: ModuleType) -> dict[str, Program]:
        """The agents that an installed module defines, by their names and by the names of their functions."""
        nearby = self._nearby.get(module.__name__)
        if nearby is None:
            nearby = self._nearby[module.__name__] = {}
            agents, _ = marked_in(module)
            for by_mark in (False, True):  # the name of an agent takes precedence over that of a function
                for function, mark in agents:
                    name = mark.name if by_mark else function.__name__
                    program = _program(function, mark, f"{module.__name__}:{name}", nearby)
                    if program is not None:
                        nearby[name] = program
        return nearby


def _program(function: Function, mark: AgentMark, address: str, nearby: dict[str, Program]) -> Program | None:
    """The program of `function`, or None if its parameters cannot be given by name."""
    try:
        return Program(function, mark, address, address=address, nearby=nearby)
    except (TypeError, NameError):
        return None
