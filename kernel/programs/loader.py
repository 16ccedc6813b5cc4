"""Finds agents and tools: in the folders of the settings, in entry points, and in files that are run by their path.

Used to start processes and to call tools. Its callers run it in worker threads, never on the loop, because it reads and
executes files. A file that cannot be loaded is listed with its error and does not affect others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec

from ipc.abi import AGENT_ATTRIBUTE, TOOL_ATTRIBUTE, AgentMark
from ipc.errors import AgentFailed, UnknownProgram
from ipc.syscalls import ProgramInfo
from kernel.programs.arguments import Arguments
from kernel.programs.suggestion import did_you_mean, similar
from kernel.programs.tool import Tool

ENTRY_POINTS = "llmosd.agents"
MAX_DOC = 10_000  # characters of a docstring

Loaded = tuple[int, list["Program"], list[Tool]]  # modification time, and the agents and tools that the file defines

Function = Callable[..., Coroutine[Any, Any, Any]]


class Program:
    """An agent function with a checker for its arguments."""

    def __init__(self, function: Function, mark: AgentMark, source: str) -> None:
        self.name = mark.name
        self.summary = mark.summary
        self.accepts = mark.accepts
        self.durable = mark.durable
        self.version = _version(function)
        self.source = source
        self.function = function
        context = next(iter(inspect.signature(function).parameters))
        arguments = Arguments(mark.name, function, (context,))
        self.signature = arguments.signature
        self.bind = arguments.bind
        self._arguments = arguments
        self.needs_no_arguments = arguments.all_optional

    def info(self) -> ProgramInfo:
        return ProgramInfo(self.name, self.summary, self.signature, self.source)

    def describe(self) -> ProgramInfo:
        """The program with its docstring and its parameters."""
        doc = (inspect.getdoc(self.function) or "")[:MAX_DOC]
        return msgspec.structs.replace(self.info(), doc=doc, parameters=self._arguments.describe())


def _version(function: Function) -> str:
    """A short digest of the current content of the file that defines `function`; empty if there is no such file."""
    try:
        return hashlib.blake2b(Path(inspect.getsourcefile(function) or "").read_bytes(), digest_size=8).hexdigest()
    except (OSError, TypeError):
        return ""


class ProgramLoader:
    """The programs and tools in `folders` and entry points, and the tools in files that were run by their path."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._files: dict[Path, Loaded] = {}  # by resolved path
        self._broken: dict[str, ProgramInfo] = {}
        self._entry_point_programs: list[Program] | None = None
        self._installed_tools: list[Tool] = []
        self.tools: dict[str, Tool] = {}  # by name; replaced and never changed, so the loop may read it
        self.by_name: dict[str, Program] = {}  # from folders and entry points; replaced, too
        self._lock = threading.Lock()  # several worker threads may load at the same time

    def load(self, name: str) -> Program:
        """The program called `name`, or the one in the file `name` (`file.py` or `file.py:agent`).

        Loads a file again if it has changed. Blocks on the disk. Raises `UnknownProgram` and `AgentFailed`.
        """
        path, suffix, wanted = name.partition(".py")
        if "/" in name or (suffix and (not wanted or wanted.startswith(":"))):
            with self._lock:
                return self._load_path(Path(path + suffix), wanted.removeprefix(":"))
        self.refresh()
        program = self.by_name.get(name)
        if program is None:
            broken = self._broken.get(name)
            if broken is not None:
                raise AgentFailed(f"program {name} in {broken.source} cannot be loaded:\n{broken.error}")
            known = ", ".join(sorted(self.by_name)) or "none"
            hint = did_you_mean(similar(name, self.by_name))
            raise UnknownProgram(
                f"no program {name!r}; {hint}known: {known}. A path such as ./{name}.py runs a file",
                program=name,
            )
        return program

    def refresh(self) -> None:
        """Load all new and changed files in the folders and, the first time, the entry points. Blocks on the disk."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        self._broken.clear()
        if self._entry_point_programs is None:
            self._entry_point_programs = list(self._load_entry_points())
        by_name = {program.name: program for program in self._entry_point_programs}
        in_folders: list[Tool] = []
        for folder in self._folders:
            for path in sorted(folder.glob("*.py")):
                if path.name.startswith("_"):
                    continue
                try:
                    _, programs, tools = self._load_file(path.resolve())
                    by_name.update((program.name, program) for program in programs)
                    in_folders += tools
                except AgentFailed as error:
                    self._broken[path.stem] = ProgramInfo(path.stem, "", "", str(path), error.message)
        self.by_name = by_name
        # A tool in a file that was run by its path is known by name, too, unless a tool in a folder has the same name.
        by_path = [tool for path, (_, _, found) in self._files.items() if path.is_file() for tool in found]
        self.tools = {tool.name: tool for tool in (*self._installed_tools, *by_path, *in_folders)}

    def listing(self) -> list[ProgramInfo]:
        """The programs in folders and entry points, and those that could not be loaded, sorted by name."""
        known = [program.info() for program in self.by_name.values()]
        return sorted([*known, *self._broken.values()], key=lambda info: info.name)

    def _load_path(self, path: Path, wanted: str) -> Program:
        if not path.is_file():
            raise UnknownProgram(f"no file {path}", program=str(path))
        if path.suffix != ".py":
            raise UnknownProgram(f"{path} is not a Python file: its name does not end in .py", program=str(path))
        _, programs, tools = self._load_file(path.resolve())
        self.tools = self.tools | {tool.name: tool for tool in tools}
        named = [program for program in programs if wanted in ("", program.name)]
        if len(named) == 1:
            return named[0]
        names = ", ".join(program.name for program in programs) or "none: mark a coroutine with @agent"
        raise UnknownProgram(f"agents in {path}: {names}; name one as {path}:NAME", program=str(path))

    def _load_file(self, path: Path) -> Loaded:
        """The agents and tools that the file defines. Raises `AgentFailed` with the traceback if it cannot be run."""
        changed = path.stat().st_mtime_ns
        loaded = self._files.get(path)
        if loaded is not None and loaded[0] == changed:
            return loaded
        self._files.pop(path, None)
        name = f"llmosd_program_{path.stem}_{hashlib.blake2b(bytes(path), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            own = [value for value in vars(module).values() if getattr(value, "__module__", None) == name]
            self._files[path] = found = (
                changed,
                [
                    Program(value, getattr(value, AGENT_ATTRIBUTE), str(path))
                    for value in own
                    if hasattr(value, AGENT_ATTRIBUTE)
                ],
                [
                    Tool(value, getattr(value, TOOL_ATTRIBUTE), str(path))
                    for value in own
                    if hasattr(value, TOOL_ATTRIBUTE)
                ],
            )
        except BaseException as error:
            raise AgentFailed(f"{path} cannot be loaded:\n{traceback.format_exc(limit=-3)}") from error
        return found

    def _load_entry_points(self) -> Iterable[Program]:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            source = f"{entry.value} ({entry.dist.name if entry.dist else 'unknown'})"
            try:
                function = entry.load()
                if hasattr(function, TOOL_ATTRIBUTE):
                    tool_mark = msgspec.structs.replace(getattr(function, TOOL_ATTRIBUTE), name=entry.name)
                    self._installed_tools.append(Tool(function, tool_mark, source))
                    continue
                mark: AgentMark = getattr(function, AGENT_ATTRIBUTE)
                yield Program(function, msgspec.structs.replace(mark, name=entry.name), source)
            except Exception:
                self._broken[entry.name] = ProgramInfo(entry.name, "", "", source, traceback.format_exc(limit=-3))
