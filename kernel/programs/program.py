"""A program: an agent function, its version, and the other agents that it can spawn by a name of its own file.

The program loader and the entry points make programs. A process refers to its program, so that the names that it
spawns mean the same in every run of the daemon. This module never executes a file.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from ipc.abi import AGENT_ATTRIBUTE, TOOL_ATTRIBUTE, AgentMark, ToolMark
from ipc.errors import InvalidCall
from ipc.foreign import shown
from ipc.syscalls import ProgramInfo, ToolInfo
from kernel.lib import failures
from kernel.programs.arguments import Arguments
from kernel.programs.jobs import TimeLimit
from kernel.programs.neighbours import PREFIX, ProgramModule
from kernel.programs.sources import SourceFile
from kernel.programs.tool import Tool, broken_tool

Function = Callable[..., Coroutine[Any, Any, Any]]

DIGEST_BYTES = 8  # of a version
MAX_DOC = 10_000  # characters of a docstring


class Program:
    """An agent function with a checker for its arguments.

    `source` is its file or package, and `address` a name that means this program even if another has the same `name`.
    `module` is its file as it was loaded; None for installed programs. `nearby` are the programs of the same file, by
    name: the agents in it can spawn them by these names, whatever other programs are called.
    """

    def __init__(
        self,
        function: Function,
        mark: AgentMark,
        source: str,
        *,
        address: str = "",
        version: str | None = None,
        module: ProgramModule | None = None,
        nearby: dict[str, Program] | None = None,
    ) -> None:
        self.name = mark.name
        self.summary = mark.summary
        self.accepts = mark.accepts
        self.durable = mark.durable
        self.version = _version_of_function(function) if version is None else version
        self.source = source
        self.address = address or mark.name
        self.module = module
        self.nearby = {} if nearby is None else nearby
        self.function = function
        context = next(iter(inspect.signature(function).parameters))
        arguments = Arguments(mark.name, function, (context,))
        self.signature = arguments.signature
        self.bind = arguments.bind
        self._arguments = arguments
        self.needs_no_arguments = arguments.all_optional

    def info(self, warning: str = "") -> ProgramInfo:
        return ProgramInfo(self.name, self.summary, self.signature, self.source, warning=warning)

    def describe(self) -> ProgramInfo:
        """The program with its docstring and its parameters."""
        doc = (inspect.getdoc(self.function) or "")[:MAX_DOC]
        return msgspec.structs.replace(self.info(), doc=doc, parameters=self._arguments.describe())

    def name_for(self, function: Any) -> str:
        """The name by which an agent of this program's file spawns the agent `function`. Raises `InvalidCall`.

        The name of an agent of the same file, `MODULE:AGENT` for a neighbour or an installed package, `FILE.py:AGENT`
        for a file of another folder. So a folder can move without a change to the calls that durable agents record.
        """
        mark = getattr(function, AGENT_ATTRIBUTE, None)
        if not isinstance(mark, AgentMark):
            raise InvalidCall(
                f"{shown(function)} is not a program: spawn an agent's name, or a function marked with @agent"
            )
        for name in (mark.name, function.__name__):
            if name in self.nearby and self.nearby[name].function is function:
                return name
        for loaded in self.module.folder.loaded() if self.module is not None else ():
            if loaded.module.__name__ == function.__module__:
                return f"{loaded.source.key}:{mark.name}"
        if function.__module__.startswith(PREFIX):
            return f"{inspect.getsourcefile(function)}:{mark.name}"
        return f"{function.__module__}:{mark.name}"


class ProgramFile:
    """The agents and tools that a loaded file defines; imported ones belong to the file that defines them.

    `nearby` finds the agents by name, and by the name of their function where no agent has that name. Of several
    agents with one name, the last gets it. `broken` are the agents whose parameters cannot be used, with the reason, by
    both names, and `broken_tools` the tools.
    """

    def __init__(self, module: ProgramModule) -> None:
        key = module.source.key
        self.module = module
        self.imports = module.folder.imports_of(key)
        path, version = module.source.version.path, version_of(key, self.imports)
        agents, tools = marked_in(module.module)
        last = {mark.name: function for function, mark in agents}
        self.nearby: dict[str, Program] = {}
        self.programs: list[Program] = []
        self.broken: dict[str, ProgramInfo] = {}
        for function, mark in agents:
            address = f"{path}:{mark.name if last[mark.name] is function else function.__name__}"
            try:
                self.programs.append(
                    Program(function, mark, path, address=address, version=version, module=module, nearby=self.nearby)
                )
            except BaseException as error:
                why = unusable(error)
                info = ProgramInfo(mark.name, mark.summary, "", path, why)
                self.broken |= {function.__name__: info, mark.name: info}
        self.nearby.update(
            {program.function.__name__: program for program in self.programs}
            | {program.name: program for program in self.programs}
        )
        for name in self.broken.keys() & self.nearby.keys():
            del self.broken[name]
        self.tools: list[Tool] = []
        self.broken_tools: list[ToolInfo] = []
        for tool, tool_mark in tools:
            try:
                self.tools.append(Tool(tool, tool_mark, path))
            except BaseException as error:
                self.broken_tools.append(broken_tool(tool_mark, path, unusable(error)))

    @property
    def names(self) -> list[str]:
        """The names of its agents, also of broken ones."""
        return [program.name for program in self.programs] + list({info.name: None for info in self.broken.values()})

    @property
    def is_current(self) -> bool:
        """Whether neither the file nor a file that it imports has changed. Blocks on the disk."""
        return not self.module.folder.changed(self.imports)


def unusable(error: BaseException) -> str:
    """Why a function cannot be an agent or a tool: `error` was raised for its parameters. Raises `TimeLimit` again."""
    if isinstance(error, TimeLimit):
        raise error
    return failures.summary(error)


def marked_in(module: ModuleType) -> tuple[list[tuple[Function, AgentMark]], list[tuple[Callable[..., Any], ToolMark]]]:
    """The agents and the tools that `module` itself defines, with their marks, in the order of their definitions."""
    agents: dict[Any, AgentMark] = {}
    tools: dict[Any, ToolMark] = {}
    for value in vars(module).values():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            if isinstance(mark := getattr(value, AGENT_ATTRIBUTE, None), AgentMark):
                agents[value] = mark
            if isinstance(mark := getattr(value, TOOL_ATTRIBUTE, None), ToolMark):
                tools[value] = mark
    return list(agents.items()), list(tools.items())


def version_of(key: str, imports: Mapping[str, SourceFile | None]) -> str:
    """The version of the programs in the file `key`: a digest of its text and the texts of all `imports`.

    It depends on the names of neighbours within the folder, but neither on the place of the folder nor on the order of
    imports. Without neighbours it is the digest of the text alone.
    """
    files = {name: source for name, source in imports.items() if source is not None}
    digest = hashlib.blake2b(files.pop(key).text, digest_size=DIGEST_BYTES)
    for name in sorted(files):
        digest.update(f"\0{name}\0{len(files[name].text)}\0".encode())
        digest.update(files[name].text)
    return digest.hexdigest()


def _version_of_function(function: Function) -> str:
    """A short digest of the current content of the file that defines `function`; empty if there is no such file."""
    try:
        text = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest()
