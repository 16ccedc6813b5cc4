"""Imports of neighbours: the files of a folder of programs import each other, and no other code sees these modules.

The program loader loads agent files through a `FolderModules`. Each module gets an `__import__` of its own, so its
import statements find the modules of its folder at any time and in any thread. Neither `sys.path` nor the imports of
other modules change. A version of the folder never changes: changed files make the next version.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import importlib.util
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from kernel.programs.jobs import LIMIT, LoaderJob
from kernel.programs.sources import FileVersion, SourceFile, candidates, locate, parent_of, top_of
from kernel.programs.traces import place_in

PREFIX = "llmosd_program_"  # of the names of these modules in `sys.modules`
LOOP_PATIENCE = 5.0  # seconds that an import may hold the event loop


class StillRunning(ImportError):
    """Another thread has run the file for a long time. It may be slow, or never end."""


class ProgramModule:
    """A loaded file: an agent file or a module beside it. `complete`: its code has run to the end.

    `began` is the time of the clock `time.monotonic`. `folder` holds the modules that its import statements find.
    `replaces`, while the file runs: the module of an earlier version, from `sys.modules`. `defines`: the agents and
    tools in it, when the loader has looked for them.
    """

    __slots__ = ("began", "complete", "defines", "folder", "module", "replaces", "source")

    def __init__(self, source: SourceFile, folder: FolderModules, parent: ProgramModule | None) -> None:
        path = source.version.path
        if parent is None:
            stem = os.path.basename(os.path.dirname(path) if source.is_package else path).removesuffix(".py")
            digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
            name = PREFIX + re.sub(r"[^\w-]", "_", stem) + "_" + digest
        else:
            name = f"{parent.module.__name__}.{source.key.rpartition('.')[2]}"
        places = [os.path.dirname(path)] if source.is_package else None
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
        assert spec is not None
        self.source = source
        self.folder = folder
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        self.replaces: ModuleType | None = None
        self.complete = False
        self.began = time.monotonic()
        self.defines: Any = None  # a `ProgramFile`

    def execute(self) -> None:
        """Run the code of the file. Raises what it raises."""
        if self.source.error is not None:
            raise self.source.error
        # The code is compiled from the text that the version of the program covers, and never from a cached file of
        # byte code: Python takes such a file for current if the size and the second of the last change are the same.
        code = compile(self.source.text, self.source.version.path, "exec", dont_inherit=True)
        namespace = vars(self.module)
        namespace["__builtins__"] = vars(builtins) | {"__import__": self.import_module}
        exec(code, namespace)
        self.complete = True

    def import_module(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the parameters of `__import__`
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The `__import__` of this module: finds neighbours, and passes any other name to Python's own."""
        target, names = self.source.target(name, level), fromlist or ()
        if target is None or (not level and self.folder.source(top_of(target)) is None):
            try:
                return builtins.__import__(name, globals, locals, names, level)
            except ModuleNotFoundError as error:
                top = top_of(name)
                if error.name == top and os.path.isdir(os.path.join(self.folder.path, top)):
                    error.msg = f"No module named {top!r}; the folder {top} in {self.folder.path} needs an __init__.py"
                raise
        if not target:  # from . import a, b
            found = ModuleType(self.folder.path)
            vars(found).update((item, self.folder.load(item).module) for item in names)
            return found
        loaded = self.folder.load(target)
        if not names:
            return self.folder.load(top_of(target)).module
        if loaded.source.is_package:
            self._import_submodules(loaded, names)
        return loaded.module

    def _import_submodules(self, package: ProgramModule, names: Iterable[str]) -> None:
        """Load those of `names`, which a statement imports from `package`, that are modules in it."""
        for name in names:
            if name == "*":
                self._import_submodules(package, getattr(package.module, "__all__", ()))
            elif not hasattr(package.module, name) and self.folder.source(f"{package.source.key}.{name}") is not None:
                self.folder.load(f"{package.source.key}.{name}")


class _RunningFiles:
    """Which threads run which files of a folder, in all its versions. `changed` guards the tables of modules, too."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # no thread holds it while a file runs
        self.loading: dict[ProgramModule, int] = {}  # the thread that runs the file
        self.waiting: dict[int, ProgramModule] = {}  # by thread: the module that it waits for


class Update(NamedTuple):
    """A look at the disk: the `next` version of the folder, with the modules `taken_over`. `gone` have no file now."""

    next: FolderModules
    taken_over: list[ProgramModule]
    gone: list[ProgramModule]


class FolderModules:
    """The source files and modules of one folder, in one version.

    A running process holds the version that it started with, so an import that runs late gets the text that its file
    had then. Files that no import statement names are read when they are imported.
    """

    def __init__(
        self,
        path: str,
        sources: Mapping[str, SourceFile | None] | None = None,
        progress: _RunningFiles | None = None,
    ) -> None:
        self.path = path
        self._sources = dict(sources or {})  # by key; None: there was no such file
        self._modules: dict[str, ProgramModule] = {}
        self._progress = _RunningFiles() if progress is None else progress

    def source(self, key: str) -> SourceFile | None:
        """The source file of `key`, as this version of the folder has it."""
        if key not in self._sources:
            found = locate(self.path, key)
            self._sources.setdefault(key, None if found is None else SourceFile(key, found))
        return self._sources[key]

    def imports_of(self, key: str) -> dict[str, SourceFile | None]:
        """The file `key` and all files that it imports, directly or through others, by key.

        None stands for a module that does not exist in this folder and that would be imported if it did.
        """
        found: dict[str, SourceFile | None] = {}
        pending = [key]
        while pending:
            key = pending.pop()
            if key in found:
                continue
            if parent := parent_of(key):
                pending.append(parent)
                package = self.source(parent)
                if package is None or not package.is_package:
                    continue
            source = found[key] = self.source(key)
            pending += () if source is None else source.imports
        return found

    def load(self, key: str) -> ProgramModule:
        """The module of `key`; runs its file if it has not run yet. An error leaves no trace of the module.

        Raises `ModuleNotFoundError`, and whatever the code of the file raises. On the event loop also raises
        `StillRunning` if that takes longer than `LOOP_PATIENCE` seconds; the file goes on in another thread.
        """
        loaded = self._modules.get(key)
        if loaded is not None and loaded.complete:
            return loaded
        if asyncio._get_running_loop() is None or threading.current_thread() is not threading.main_thread():
            return self._load_here(key)
        if loaded is not None and loaded in self._progress.loading and time.monotonic() > loaded.began + LOOP_PATIENCE:
            raise _still_running(loaded)
        job = LoaderJob(os.path.join(self.path, key), lambda: self._load_here(key))
        if not job.wait(LOOP_PATIENCE):
            raise StillRunning(f"{job.described()}, longer than an import may hold the event loop", name=key)
        return job.result()

    def _load_here(self, key: str) -> ProgramModule:
        """`load` in this thread."""
        parent = self.load(parent_of(key)) if parent_of(key) else None
        if parent is not None and not parent.source.is_package:
            raise ModuleNotFoundError(f"No module named {key!r}; {parent.source.key!r} is not a package", name=key)
        source = self.source(key)
        if source is None:
            raise ModuleNotFoundError(f"No module named {key!r} in {self.path}", name=key)
        loaded = ProgramModule(source, self, parent)
        other = self._begin(loaded)
        if other is not None:
            return other
        try:
            loaded.execute()
            if parent is not None:
                setattr(parent.module, key.rpartition(".")[2], loaded.module)
        finally:
            self._end(loaded)
        return loaded

    def _begin(self, new: ProgramModule) -> ProgramModule | None:
        """Let this thread run the file of `new`, or return the module if another import has run or runs this file.

        Waits for another thread that runs the file. Raises `StillRunning` if the file has run for `LIMIT` seconds. The
        module may be incomplete if a wait would never end, as in a circular import, also one across several threads.
        """
        key, thread, progress = new.source.key, threading.get_ident(), self._progress
        with progress.changed:
            while (loaded := self._modules.get(key)) is not None:
                if loaded.complete or self._waits_for(loaded, thread):
                    return loaded
                if loaded not in progress.loading:
                    break  # it has failed in another version of the folder
                left = loaded.began + LIMIT - time.monotonic()
                if left <= 0:
                    raise _still_running(loaded)
                progress.waiting[thread] = loaded
                try:
                    progress.changed.wait(left)
                finally:
                    del progress.waiting[thread]
            # The module can be found while its file runs, as dataclasses and circular imports need it.
            progress.loading[new], self._modules[key] = thread, new
            new.replaces = sys.modules.get(new.module.__name__)
            sys.modules[new.module.__name__] = new.module
        return None

    def _waits_for(self, module: ProgramModule, thread: int) -> bool:
        """Whether the thread that loads `module` is `thread`, or waits for `thread` directly or through others."""
        following: ProgramModule | None = module
        while following is not None:
            owner = self._progress.loading.get(following)
            if owner is None or owner == thread:
                return owner == thread
            following = self._progress.waiting.get(owner)
        return False

    def _end(self, loaded: ProgramModule) -> None:
        """Wake the threads that wait for `loaded`. If its file has failed, undo `_begin`."""
        with self._progress.changed:
            key, name, before = loaded.source.key, loaded.module.__name__, loaded.replaces
            del self._progress.loading[loaded]
            loaded.replaces = None
            if not loaded.complete:
                for modules in (self._modules, loaded.folder._modules):  # a later version may have taken it over
                    if modules.get(key) is loaded:
                        del modules[key]
                if sys.modules.get(name) is not loaded.module:
                    pass  # a later version has taken the entry
                elif before is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = before
            self._progress.changed.notify_all()

    def loaded(self) -> list[ProgramModule]:
        """The modules whose files have run."""
        return [module for module in list(self._modules.values()) if module.complete]

    def defined(self, key: str) -> Any:
        """The `defines` of the module of `key`; None if the file has not run or the loader has not looked."""
        loaded = self._modules.get(key)
        return None if loaded is None or not loaded.complete else loaded.defines

    @property
    def is_empty(self) -> bool:
        """Whether no file has run or runs."""
        return not self._modules

    def changed(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` whose files on the disk are not the ones of this version."""
        return {key for key in keys if locate(self.path, key) != _readable_version(self._sources.get(key))}

    def candidates(self) -> set[str]:
        """The paths that the modules of this version have, or would have if they existed."""
        return {path for key in list(self._sources) for path in candidates(self.path, key)}

    def update(self) -> Update:
        """This version if it is current, else the next one. Reads the disk, and changes nothing.

        The next version takes over the modules that no change affects, also those whose files still run. A change
        affects the modules that import the changed file, directly or through others. Packages are affected as a whole.
        """
        changed = self.changed(list(self._sources))
        if not changed:
            return Update(self, [], [])
        tops = {top_of(key) for key in changed}
        sources = {key: source for key, source in list(self._sources.items()) if key not in changed}
        update = Update(FolderModules(self.path, sources, self._progress), [], [])
        for key, loaded in list(self._modules.items()):
            if top_of(key) not in tops and not changed & self.imports_of(key).keys():
                update.taken_over.append(loaded)
            elif locate(self.path, key) is None:
                update.gone.append(loaded)
        return update

    def replace_by(self, update: Update) -> FolderModules:
        """Pass modules on to the next version: see `update`."""
        with self._progress.changed:
            for loaded in update.taken_over:
                if self._modules.get(loaded.source.key) is loaded:  # its file has not failed in the meantime
                    update.next._modules[loaded.source.key] = loaded
                    loaded.folder = update.next
            for loaded in update.gone:
                if sys.modules.get(loaded.module.__name__) is loaded.module:
                    del sys.modules[loaded.module.__name__]
        return update.next


def _still_running(loaded: ProgramModule) -> StillRunning:
    """The error about a file that another thread runs."""
    thread = loaded.folder._progress.loading.get(loaded)
    place = place_in(thread) if thread is not None else ""
    seconds = time.monotonic() - loaded.began
    return StillRunning(
        f"{loaded.source.version.path} has been running for {seconds:.0f} s in another thread, at {place}",
        name=loaded.source.key,
    )


def _readable_version(source: SourceFile | None) -> FileVersion | None:
    """The version of `source`. A file that could not be read has none, so that it is read again."""
    return None if source is None or source.error is not None else source.version
