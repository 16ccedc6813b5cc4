"""Finds agents and tools: in the folders of the settings, in installed packages, and in files that are run by path.

Used to start processes and to call tools. Its callers pass `look` and `refresh` to `in_worker`, never call them on the
loop, because these wait for the disk and for files that run. It never waits long for either: everything that may hang
is a job (`jobs.py`).
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ipc.errors import AgentFailed, Busy, UnknownProgram
from ipc.syscalls import ProgramInfo, ToolInfo
from kernel.lib.worker_threads import DaemonThreads
from kernel.programs.disk import FileLook, list_files, look_at, python_file, stamps
from kernel.programs.installed import InstalledPrograms, text_of_entry
from kernel.programs.jobs import LoaderJob, LoaderJobs, NotYet, Settled
from kernel.programs.neighbours import FolderModules
from kernel.programs.program import Program, ProgramFile
from kernel.programs.running import define_all, run_file, tools_in
from kernel.programs.same_names import Rivals
from kernel.programs.suggestion import did_you_mean, similar
from kernel.programs.tool import Tool

FILE = re.compile(r"(.*\.py)(?::([^/:]*))?", re.DOTALL)  # `file.py` or `file.py:agent`
SHOWN_BROKEN = 3  # files that an error names because they might define the program
WORKERS = 8  # threads for looks, which take turns
LISTED_AFTER = 5.0  # seconds after which a listing does not wait for a file

T = TypeVar("T")


class ProgramLoader:
    """The programs and tools in `folders` and installed packages, and the tools in files that were run by path.

    `by_name` and `tools` are replaced and never changed, so the loop may read them. `broken_tools` are tools whose
    parameters cannot be used.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._listed: dict[Path, list[Path]] = {}  # the files in each folder at the last look
        self._modules: dict[Path, FolderModules] = {}  # by resolved folder
        self._files: dict[Path, ProgramFile] = {}  # of `_folders` at the last look, by resolved path
        self._broken: dict[str, ProgramInfo] = {}  # files by stem, and agents
        self._loading: set[str] = set()  # those of `_broken` that are loading
        self._old: set[Path] = set()  # those of `_files` that a look at the disk may show to have changed
        self._busy: dict[str, Busy] = {}  # those of `_broken` that may load later
        self.installed = InstalledPrograms()
        self.tools: dict[str, Tool] = {}
        self.broken_tools: dict[str, ToolInfo] = {}
        self.by_name: dict[str, Program] = {}  # from folders and entry points
        self._rivals = Rivals("programs")
        self._rival_tools = Rivals("tools")
        self._jobs = LoaderJobs()
        self._look = threading.Lock()  # held during a look at anything; guards all of the above
        self._workers = DaemonThreads("llmosd look", WORKERS)

    async def in_worker(self, work: Callable[[float], T]) -> T:
        """Call `work`, which looks for programs, in a worker thread; again as often as it raises `NotYet`.

        Its argument is the present time: earlier looks at the disk do not serve it. A caller that waits for a file
        holds no thread.
        """
        loop, since = asyncio.get_running_loop(), time.monotonic()
        while True:
            try:
                return await loop.run_in_executor(self._workers, copy_context().run, work, since)
            except NotYet as pending:
                await loop.run_in_executor(Settled(pending.settled), int)

    def find(self, name: str, caller: Program | None = None) -> Program | None:
        """The program that `name` means to a process that runs `caller`, if it is loaded. Never blocks.

        An agent of the caller's own file takes precedence. A client has no file: its `caller` is None.
        """
        if caller is not None and name in caller.nearby:
            return caller.nearby[name]
        return self.by_name.get(name)

    def look(self, name: str, caller: Program | None, since: float) -> Program:
        """The program that `name` means to a process that runs `caller`: see `find`.

        `name` is also a file (`file.py` or `file.py:AGENT`), or a module (`MODULE:AGENT`): one beside the file of the
        caller, or an installed one. Loads new and changed files. Looks at the disk as it is after `since`. Raises
        `UnknownProgram`, `AgentFailed`, `NotYet`, and `Busy` if a file does not end.
        """
        if caller is not None and name in caller.nearby:
            return caller.nearby[name]
        with self._look:
            file = FILE.fullmatch(name)
            if file is not None or "/" in name:
                path, wanted = (name, None) if file is None else file.groups()
                return self._load_path(Path(path), wanted or "", since)
            neighbour = None if caller is None else self._load_neighbour(name, caller)
            if neighbour is not None:
                return neighbour
            program = self.by_name.get(name)
            if program is None or not self._is_current(program, since):
                pending = self._refresh(since)
                program = self.by_name.get(name)
                if pending and (self._is_old(program) if program else ":" not in name and not self._is_broken(name)):
                    raise NotYet(pending)
            return self._load_installed(name, caller) if program is None else program

    def load(self, name: str, caller: Program | None = None) -> Program:
        """`look`, which also waits for files that run."""
        since = time.monotonic()
        while True:
            try:
                return self.look(name, caller, since)
            except NotYet as pending:
                pending.settled.result()

    def look_everywhere(self, since: float) -> list[LoaderJob[Any]]:
        """Load all new and changed files in the folders and all entry points. Returns the jobs that had not ended."""
        with self._look:
            return self._refresh(since)

    def refresh(self, since: float = 0.0) -> None:
        """`look_everywhere`, and wait `LISTED_AFTER` seconds at most for files that began to run that recently."""
        end = time.monotonic() + LISTED_AFTER
        while young := [job for job in self.look_everywhere(since) if job.ended or job.age < LISTED_AFTER]:
            left = end - time.monotonic()
            if left <= 0:
                break
            with suppress(TimeoutError):
                NotYet(young).settled.result(left)

    def stamp(self, names: Iterable[str], since: float) -> frozenset[object]:
        """The present state of all files of programs, and of those that `names` name by path: equal if none changed.

        Raises `NotYet`, and `Busy` if a disk hangs.
        """
        paths = [Path(match[1]) for name in names if (match := FILE.fullmatch(name)) is not None]
        with self._look:
            found: set[object] = set()
            for folder in dict.fromkeys([*self._folders, *self._modules, *(path.parent for path in paths)]):
                modules = self._modules.get(folder)
                within = [path for path in paths if path.parent == folder]
                work = partial(stamps, folder, modules, within)
                found |= self._jobs.look(("stamp", folder, *within), folder, work, since)
            return frozenset(found)

    def do(self, key: Hashable, what: str, work: Callable[[], T]) -> T:
        """Do `work`, which imports `what`, as a job: see `LoaderJobs.do`."""
        with self._look:
            return self._jobs.do(key, what, work)

    def listing(self) -> list[ProgramInfo]:
        """The programs in folders and entry points, and those that could not be loaded, sorted by name.

        Of programs with one name, the first one listed has it. The others have a warning that says how to run them.
        """
        rows = []
        for name, program in self.by_name.items():
            rows.append(program.info())
            rows += [
                rival.info(f"{program.address} has the same name and hides it; run it as {rival.address}")
                for rival in self._rivals.of(name)
                if rival is not program
            ]
        rows += (self.installed.broken | self._broken).values()
        return sorted(rows, key=lambda info: info.name)

    # ---- everything

    def _refresh(self, since: float) -> list[LoaderJob[Any]]:
        pending: list[LoaderJob[Any]] = []
        broken: dict[str, ProgramInfo] = {}
        busy: dict[str, Busy] = {}
        loading: set[str] = set()

        def attempt(name: str, source: object, work: Callable[[], T]) -> T | None:
            try:
                return work()
            except NotYet as error:
                pending.extend(error.jobs)
                loading.add(name)
                why = "; ".join(job.described() for job in error.jobs)
            except (AgentFailed, Busy) as error:
                why = error.message
                if isinstance(error, Busy):
                    busy[name] = error
            except OSError as error:
                why = str(error)
            broken[name] = ProgramInfo(name, "", "", str(source), why)
            return None

        attempt("entry points", "installed packages", self._find_entry_points)
        for entry in list(self.installed.pending or ()):
            attempt(entry.name, text_of_entry(entry), partial(self._load_entry_point, entry))
        for folder in self._folders:
            listed = attempt(
                folder.name, folder, partial(self._jobs.look, folder, folder, partial(list_files, folder), since)
            )
            if listed is not None:
                self._listed[folder] = listed
        listed = [path for folder in self._folders for path in self._listed.get(folder, ())]
        looks: dict[Path, FileLook] = {}
        old: set[Path] = set()
        for parent in dict.fromkeys([*self._modules, *(path.parent for path in listed)]):
            within = [path for path in listed if path.parent == parent]
            found = attempt(parent.name, parent, partial(self._look_at, parent, within, since))
            looks |= found or {}
            if found is None and parent.name in loading:
                old.update(within)
        files = {}
        for path in listed:
            if path in looks:
                file = attempt(path.stem, path, partial(self._load_file, path, looks[path]))
            else:
                file = self._files.get(path)  # the disk hangs
            if file is not None:
                files[path] = file
        self._define(since)
        self._files = files
        self._set_tables(list(files.values()))
        broken |= {info.name: info for file in files.values() for info in file.broken.values()}
        self._broken, self._busy, self._loading, self._old = broken, busy, loading, old
        return pending

    def _set_tables(self, files: list[ProgramFile]) -> None:
        programs = [*self.installed.programs, *(program for file in files for program in file.programs)]
        # A tool in a file that was run by path, or that such a file imports, is known by name, too, unless a tool in a
        # folder has the same name.
        by_path = [tool for modules in self._modules.values() for tool in tools_in(modules)]
        tools = [*self.installed.tools, *by_path, *(tool for file in files for tool in file.tools)]
        self.by_name = {program.name: program for program in programs}
        self.tools = {tool.name: tool for tool in tools}
        self.broken_tools = {tool.name: tool for file in files for tool in file.broken_tools}
        self._rivals.update((program.name, program, program.address) for program in programs)
        self._rival_tools.update((tool.name, tool, tool.source) for tool in tools)

    def _find_entry_points(self) -> None:
        installed = self.installed
        if installed.pending is None:
            found = self._jobs.do(installed, "the list of installed packages", lambda: list(installed.find()))
            installed.pending = found

    def _load_entry_point(self, entry: Any) -> None:
        installed = self.installed
        self._jobs.do((installed, entry), text_of_entry(entry), partial(installed.load_entry_point, entry))
        installed.pending = [other for other in installed.pending or () if other is not entry]

    def _is_old(self, program: Program) -> bool:
        return Path(program.source) in self._old

    def _is_broken(self, name: str) -> bool:
        """Whether `name` is a file or an agent that is broken, so that no file that still runs has to define it."""
        return name in self._busy or (name in self._broken and name not in self._loading)

    def _load_installed(self, name: str, caller: Program | None) -> Program:
        """The agent `MODULE:AGENT` of an installed module, for a name that no folder and no entry point has."""
        broken = self.installed.broken | self._broken
        if caller is not None and caller.module is not None and caller.module.defines is not None:
            broken |= caller.module.defines.broken
        if name in self._busy:
            raise self._busy[name]
        if name in broken:
            raise AgentFailed(
                f"program {name} in {broken[name].source} cannot be loaded:\n{broken[name].error}", program=name
            )
        if ":" in name:
            program = self._load_address(name)
            return program if caller is None else caller.nearby.setdefault(name, program)
        known = ", ".join(sorted(self.by_name)) or "none"
        hint = did_you_mean(similar(name, self.by_name))
        suspects = [
            f"{info.source} may define it, but cannot be loaded: {info.error.strip().splitlines()[-1]}"
            for info in list(broken.values())[:SHOWN_BROKEN]
        ]
        raise UnknownProgram(
            f"no program {name!r}; {hint}known: {'. '.join([known, *suspects])}. "
            f"A path such as ./{name}.py runs a file",
            program=name,
            broken=suspects,
        )

    def _load_address(self, address: str) -> Program:
        for program in self.installed.programs:
            if program.address == address:
                return program
        module = address.partition(":")[0]
        found = self._jobs.do(("module", module), f"module {module}", partial(self.installed.import_programs, address))
        return self.installed.chosen(address, found)

    # ---- files

    def _is_current(self, program: Program, since: float) -> bool:
        """Whether no file of `program` has changed since it was loaded."""
        module = program.module
        if module is None:
            return True
        file, path = module.defines, Path(program.source)
        if module.folder is not self._modules.get(path.parent) or file is None:
            return False
        current: bool = self._jobs.look(("current", module), path.parent, lambda: file.is_current, since)
        return current

    def _load_path(self, path: Path, wanted: str, since: float) -> Program:
        path = self._jobs.look(("path", path), path.parent, partial(python_file, path), since)
        found = self._load_file(path, self._look_at(path.parent, [path], since)[path])
        self.tools = self.tools | {tool.name: tool for tool in tools_in(self._modules[path.parent])}
        if wanted in found.nearby:
            return found.nearby[wanted]
        if not wanted and len(found.programs) == 1 and not found.broken:
            return found.programs[0]
        if not wanted and not found.programs and len({id(info) for info in found.broken.values()}) == 1:
            wanted = next(iter(found.broken))
        if wanted in found.broken:
            raise AgentFailed(
                f"program {wanted} in {path} cannot be run: {found.broken[wanted].error}", program=str(path)
            )
        names = ", ".join(found.names) or "none: mark a coroutine with @agent"
        raise UnknownProgram(f"agents in {path}: {names}; name one as {path}:NAME", program=str(path))

    def _look_at(self, folder: Path, paths: list[Path], since: float) -> dict[Path, FileLook]:
        """Update the modules of a folder, and look at the files `paths` in it."""
        modules = self._modules.get(folder)
        if modules is None:
            modules = self._modules[folder] = FolderModules(str(folder))
        # The key contains this version of the folder: a look at another one would not serve.
        found = self._jobs.look((modules, *paths), folder, partial(look_at, modules, paths), since)
        modules = self._modules[folder] = modules.replace_by(found.update)
        if not paths and modules.is_empty:
            del self._modules[folder]
        return found.files

    def _load_file(self, path: Path, look: FileLook) -> ProgramFile:
        """The agents and tools that the file defines.

        Raises `AgentFailed` with the traceback if it cannot be run, `NotYet`, and `Busy` if it does not end.
        """
        modules = self._modules[path.parent]
        found = modules.defined(look.key)
        if found is None:
            work = partial(run_file, modules, look.key, f"{path}", f"{path} cannot be loaded")
            found = self._jobs.do((path, look.versions), str(path), work)
        file: ProgramFile = found
        return file

    def _load_neighbour(self, name: str, caller: Program) -> Program | None:
        """The agent `MODULE:AGENT` of a module beside the caller's file, in the version that the caller runs."""
        module, colon, wanted = name.partition(":")
        if not colon or caller.module is None:
            return None
        folder = caller.module.folder
        if not all(part.isidentifier() for part in module.split(".")):
            return None
        if self._jobs.look((folder, "source", module), Path(folder.path), partial(folder.source, module), 0.0) is None:
            return None
        found = folder.defined(module)
        if found is None:
            title = f"module {module} in {folder.path} cannot be loaded"
            work = partial(run_file, folder, module, f"{folder.path}/{module}", title)
            found = self._jobs.do((folder, module), f"module {module} in {folder.path}", work)
        if wanted in found.broken:
            raise AgentFailed(f"program {name} cannot be run: {found.broken[wanted].error}", program=name)
        if wanted not in found.nearby:
            known = ", ".join(found.names) or "none"
            raise UnknownProgram(f"no program {name!r}; agents in module {module}: {known}", program=name)
        return caller.nearby.setdefault(name, found.nearby[wanted])

    def _define(self, since: float) -> None:
        """Look for tools in modules that running code has imported."""
        for modules in list(self._modules.values()):
            if any(module.defines is None for module in modules.loaded()):
                with suppress(NotYet, Busy, AgentFailed):
                    self._jobs.do(("tools", modules), modules.path, partial(define_all, modules), since)
