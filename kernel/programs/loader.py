"""Finds agents and tools: in the folders of the settings, in installed packages, and in files that are run by path.

Used to start processes and to call tools. Its callers pass `load` and `refresh` to `in_worker`, never call them on the
loop, because these read and execute files. A file that cannot be loaded, or that never ends, does not affect others.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

import structlog

from ipc.errors import AgentFailed, Busy, UnknownProgram
from ipc.syscalls import ProgramInfo
from kernel.programs.installed import InstalledPrograms
from kernel.programs.neighbours import FolderModules, ProgramModule, StillRunning
from kernel.programs.origin import printing_for
from kernel.programs.program import Program, ProgramFile
from kernel.programs.sources import key_of
from kernel.programs.suggestion import did_you_mean, similar
from kernel.programs.tool import Tool
from kernel.programs.traces import load_error
from kernel.programs.turn import Turn, TurnLost

FILE = re.compile(r"(.*\.py)(?::([^/:]*))?", re.DOTALL)  # `file.py` or `file.py:agent`
SHOWN_BROKEN = 3  # files that an error names because they might define the program
WORKERS = 32  # threads that load; a file that never ends holds one of them for good

T = TypeVar("T")

log = structlog.get_logger("kernel.programs")


class ProgramLoader:
    """The programs and tools in `folders` and installed packages, and the tools in files that were run by path.

    `by_name` and `tools` are replaced and never changed, so the loop may read them.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._modules: dict[Path, FolderModules] = {}  # by resolved folder
        self._files: dict[Path, ProgramFile] = {}  # by resolved path
        self._broken: dict[str, ProgramInfo] = {}  # files, by stem
        self.installed = InstalledPrograms()
        self.tools: dict[str, Tool] = {}
        self.by_name: dict[str, Program] = {}  # from folders and entry points
        self._rivals: dict[str, list[Program]] = {}  # the programs of each name that several have; the last one has it
        self._reported: dict[str, list[str]] = {}  # the addresses of the rivals of which the log has a warning
        self._turn = Turn()  # several worker threads may load at the same time
        # Not the default executor, which the rest of the daemon uses: files that never end could take all its threads.
        self._workers = ThreadPoolExecutor(WORKERS, "llmosd loader")

    async def in_worker(self, work: Callable[[], T]) -> T:
        """Call `work`, which loads programs, in a worker thread. A caller that gives up does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, copy_context().run, work)

    def find(self, name: str, caller: Program | None = None) -> Program | None:
        """The program that `name` means to a process that runs `caller`, if it is loaded. Never blocks.

        An agent of the caller's own file takes precedence. A client has no file: its `caller` is None.
        """
        if caller is not None and name in caller.nearby:
            return caller.nearby[name]
        return self.by_name.get(name)

    def load(self, name: str, caller: Program | None = None) -> Program:
        """The program that `name` means to a process that runs `caller`: see `find`.

        `name` is also a file (`file.py` or `file.py:AGENT`), or a module (`MODULE:AGENT`): one beside the file of the
        caller, or an installed one. Loads new and changed files. Blocks on the disk. Raises `UnknownProgram`,
        `AgentFailed`, and `Busy` if a file takes long to load.
        """
        if caller is not None and name in caller.nearby:
            return caller.nearby[name]
        file = FILE.fullmatch(name)
        if file is not None or "/" in name:
            path, wanted = (name, None) if file is None else file.groups()
            return self._turn.do(lambda: self._load_path(Path(path), wanted or ""))
        neighbour = None if caller is None else self._load_neighbour(name, caller)
        if neighbour is not None:
            return neighbour
        program = self.by_name.get(name)
        if program is None or not self._is_current(program):
            self.refresh()
            program = self.by_name.get(name)
        return self._load_installed(name, caller) if program is None else program

    def _load_installed(self, name: str, caller: Program | None) -> Program:
        """The agent `MODULE:AGENT` of an installed module, for a name that no folder and no entry point has."""
        broken = self.installed.broken | self._broken
        if name in broken:
            raise AgentFailed(
                f"program {name} in {broken[name].source} cannot be loaded:\n{broken[name].error}", program=name
            )
        if ":" in name:
            program = self.installed.load(name)
            return program if caller is None else caller.nearby.setdefault(name, program)
        known = ", ".join(sorted(self.by_name)) or "none"
        hint = did_you_mean(similar(name, self.by_name))
        suspects = "".join(
            f". {info.source} may define it, but cannot be loaded: {info.error.strip().splitlines()[-1]}"
            for info in list(broken.values())[:SHOWN_BROKEN]
        )
        raise UnknownProgram(
            f"no program {name!r}; {hint}known: {known}{suspects}. A path such as ./{name}.py runs a file", program=name
        )

    def refresh(self) -> None:
        """Load all new and changed files in the folders and, the first time, the entry points. Blocks on the disk."""
        self._turn.do(self._refresh)

    def _refresh(self) -> None:
        with self._turn.running("an installed package"):
            self.installed.load_entry_points()
        self._update(list(self._modules))
        programs, tools = list(self.installed.programs), list[Tool]()
        broken: dict[str, ProgramInfo] = {}
        for folder in self._folders:
            for path in sorted(folder.glob("*.py")):
                if path.name.startswith("_"):
                    continue
                try:
                    found = self._load_file(path.resolve())
                    programs += found.programs
                    tools += found.tools
                except (AgentFailed, Busy) as error:
                    broken[path.stem] = ProgramInfo(path.stem, "", "", str(path), error.message)
        self._broken = broken
        self.by_name = {program.name: program for program in programs}
        self._rivals = _rivals(programs)
        self._warn_of_rivals()
        # A tool in a file that was run by path, or that such a file imports, is known by name, too, unless a tool in a
        # folder has the same name.
        by_path = [tool for modules in self._modules.values() for tool in self._tools_in(modules)]
        self.tools = {tool.name: tool for tool in (*self.installed.tools, *by_path, *tools)}

    def listing(self) -> list[ProgramInfo]:
        """The programs in folders and entry points, and those that could not be loaded, sorted by name.

        Of programs with one name, the first one listed has it. The others have a warning that says how to run them.
        """
        rows = []
        for name, program in self.by_name.items():
            rows.append(program.info())
            rows += [
                rival.info(f"{program.address} has the same name and hides it; run it as {rival.address}")
                for rival in self._rivals.get(name, ())
                if rival is not program
            ]
        rows += (self.installed.broken | self._broken).values()
        return sorted(rows, key=lambda info: info.name)

    # ---- files

    def _update(self, folders: Iterable[Path]) -> None:
        """Drop the modules of changed files in `folders`, and those of all files that import them."""
        for folder in folders:
            modules = self._modules.get(folder)
            updated = None if modules is None else modules.updated()
            if updated is modules or updated is None:
                continue
            if updated.loaded():
                self._modules[folder] = updated
            else:
                del self._modules[folder]
            self._files = {path: file for path, file in self._files.items() if self._is_loaded(path, file)}

    def _is_loaded(self, path: Path, file: ProgramFile) -> bool:
        return file.module.folder is self._modules.get(path.parent)

    def _is_current(self, program: Program) -> bool:
        """Whether no file of `program` has changed since it was loaded."""
        if program.module is None:
            return True
        path = Path(program.source)
        file = self._files.get(path)
        return file is not None and file.module is program.module and self._is_loaded(path, file) and file.is_current

    def _load_path(self, path: Path, wanted: str) -> Program:
        if not path.is_file():
            raise UnknownProgram(f"no file {path}", program=str(path))
        if path.suffix != ".py":
            raise UnknownProgram(f"{path} is not a Python file: its name does not end in .py", program=str(path))
        path = path.resolve()
        self._update([path.parent])
        found = self._load_file(path)
        self.tools = self.tools | {tool.name: tool for tool in self._tools_in(self._modules[path.parent])}
        if wanted in found.nearby:
            return found.nearby[wanted]
        if not wanted and len(found.programs) == 1:
            return found.programs[0]
        names = ", ".join(program.name for program in found.programs) or "none: mark a coroutine with @agent"
        raise UnknownProgram(f"agents in {path}: {names}; name one as {path}:NAME", program=str(path))

    def _load_file(self, path: Path) -> ProgramFile:
        """The agents and tools that the file defines.

        Raises `AgentFailed` with the traceback if it cannot be run, and `Busy` if another thread still runs it.
        """
        modules = self._modules.setdefault(path.parent, FolderModules(str(path.parent)))
        try:
            with self._turn.running(str(path)), printing_for(str(path)):
                module = modules.load(key_of(modules.path, path))
            return self._file_of(module)
        except TurnLost:
            raise
        except StillRunning as error:
            raise Busy(f"{path} cannot be loaded yet: {error}", retry_after=1.0) from None
        except BaseException as error:
            raise AgentFailed(f"{path} cannot be loaded:\n{load_error(error)}") from error

    def _file_of(self, module: ProgramModule) -> ProgramFile:
        """The agents and tools of a loaded module, made once. Raises `TypeError` and `NameError` for bad parameters."""
        path = Path(module.source.version.path)
        file = self._files.get(path)
        if file is None or file.module is not module:
            file = self._files[path] = ProgramFile(module)
        return file

    def _tools_in(self, modules: FolderModules) -> Iterator[Tool]:
        """The tools of all loaded modules of a folder, except those of modules that no agent file could be."""
        for module in modules.loaded():
            with contextlib.suppress(TypeError, NameError):
                yield from self._file_of(module).tools

    def _load_neighbour(self, name: str, caller: Program) -> Program | None:
        """The agent `MODULE:AGENT` of a module beside the caller's file, in the version that the caller runs."""
        module, colon, wanted = name.partition(":")
        if not colon or caller.module is None:
            return None
        folder = caller.module.folder
        if not all(part.isidentifier() for part in module.split(".")) or folder.source(module) is None:
            return None
        try:
            found = ProgramFile(folder.load(module))
        except BaseException as error:
            raise AgentFailed(f"module {module} in {folder.path} cannot be loaded:\n{load_error(error)}") from error
        if wanted not in found.nearby:
            known = ", ".join(program.name for program in found.programs) or "none"
            raise UnknownProgram(f"no program {name!r}; agents in module {module}: {known}", program=name)
        return caller.nearby.setdefault(name, found.nearby[wanted])

    # ---- programs with one name

    def _warn_of_rivals(self) -> None:
        """Write one warning to the log for each name that several programs have, and another when they change."""
        reported = {}
        for name, rivals in self._rivals.items():
            reported[name] = [program.address for program in rivals]
            if self._reported.get(name) != reported[name]:
                log.warning(
                    "programs have the same name", name=name, runs=rivals[-1].address, hidden=reported[name][:-1]
                )
        self._reported = reported


def _rivals(programs: Iterable[Program]) -> dict[str, list[Program]]:
    """The programs of each name that more than one program has."""
    by_name: dict[str, list[Program]] = {}
    for program in programs:
        by_name.setdefault(program.name, []).append(program)
    return {name: rivals for name, rivals in by_name.items() if len(rivals) > 1}
