"""Programs: finds the agents that can be run, by folder, by entry point and by path, and checks their arguments.

Asked by the process subsystem. Files are read and run in worker threads, never on the loop; a file that fails to load
is listed with its error and harms no other.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ipc.abi import AGENT_ATTRIBUTE, AgentMark
from ipc.errors import AgentFailed, BadArguments, UnknownProgram
from ipc.syscalls import ProgramInfo

ENTRY_POINTS = "llmosd.agents"

Function = Callable[..., Coroutine[Any, Any, Any]]


class Program:
    """An agent function with a checker for its arguments."""

    def __init__(self, function: Function, mark: AgentMark, source: str) -> None:
        self.name = mark.name
        self.summary = mark.summary
        self.accepts = mark.accepts
        self.source = source
        self.function = function
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        self.signature = str(inspect.Signature([_plain(parameter) for parameter in parameters]))
        self._arguments = arguments_struct(function)
        self._positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)

    def bind(self, args: dict[str, Any], positional: Sequence[Any] = (), *, lenient: bool = False) -> dict[str, Any]:
        """The arguments by name, converted to the annotated types. `lenient` reads numbers and such from text.

        Raises `BadArguments`.
        """
        names = self._arguments.__struct_fields__
        if len(positional) > self._positional:
            raise self._bad(f"takes {self._positional} positional arguments, got {len(positional)}")
        by_place = dict(zip(names, positional, strict=False))
        if twice := by_place.keys() & args.keys():
            raise self._bad(f"got {', '.join(sorted(twice))} twice")
        try:
            checked = msgspec.convert(by_place | args, self._arguments, strict=not lenient)
        except msgspec.ValidationError as error:
            raise self._bad(_in_words(str(error), names)) from None
        values = {name: getattr(checked, name) for name in names}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}

    def _bad(self, why: str) -> BadArguments:
        return BadArguments(f"{self.name}{self.signature}: {why}", program=self.name)

    def info(self) -> ProgramInfo:
        return ProgramInfo(self.name, self.summary, self.signature, self.source)


def _in_words(error: str, names: Sequence[str]) -> str:
    """What msgspec says about a Struct, said about the arguments of a program."""
    what, _, path = error.partition(" - at `$")
    if missing := re.match(r"Object missing required field `(.+)`", what):
        return f"argument {missing[1]} is missing"
    if unknown := re.match(r"Object contains unknown field `(.+)`", what):
        near = difflib.get_close_matches(unknown[1], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"there is no argument {unknown[1]}; {hint}Known: {', '.join(names)}"
    return f"argument {path.strip('`.')}: {what}"


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """As people read it: `**options` without its type."""
    return parameter.replace(annotation=parameter.empty) if parameter.kind is parameter.VAR_KEYWORD else parameter


def arguments_struct(function: Function) -> type[msgspec.Struct]:
    """A Struct with one field per parameter of an agent but the first, which is its context.

    `**options: Unpack[SomeTypedDict]` becomes optional fields; other variadic parameters raise `TypeError`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        hint = hints.get(parameter.name, Any)
        if parameter.kind is parameter.VAR_KEYWORD and typing.get_origin(hint) is typing.Unpack:
            options = typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
            fields += [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in options.items()]
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"agent {function.__name__}: parameter {parameter} cannot be given by name")
        elif parameter.default is parameter.empty:
            fields.append((parameter.name, hint, msgspec.NODEFAULT))
        else:
            fields.append((parameter.name, hint | msgspec.UnsetType if hint is not Any else Any, msgspec.UNSET))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


class Programs:
    """All known programs by name, and those run by path."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._files: dict[Path, tuple[int, list[Program]]] = {}  # by resolved path: time of change, programs
        self._broken: dict[str, ProgramInfo] = {}
        self._installed: list[Program] | None = None
        self._by_name: dict[str, Program] = {}
        self._lock = threading.Lock()  # loads are called from several worker threads

    def find(self, name: str) -> Program | None:
        """The program of that name, if it is loaded. Does no I/O."""
        return self._by_name.get(name)

    def load(self, name: str) -> Program:
        """The program called `name`, or in the file `name` (`file.py` or `file.py:agent`), read afresh if it changed.

        Blocks on the disk. Raises `UnknownProgram` and `AgentFailed`.
        """
        path, suffix, wanted = name.partition(".py")
        if "/" in name or (suffix and (not wanted or wanted.startswith(":"))):
            with self._lock:
                return self._load_path(Path(path + suffix), wanted.removeprefix(":"))
        self.refresh()
        program = self._by_name.get(name)
        if program is None:
            broken = self._broken.get(name)
            if broken is not None:
                raise AgentFailed(f"program {name} in {broken.source} cannot be loaded:\n{broken.error}")
            known = ", ".join(sorted(self._by_name)) or "none"
            raise UnknownProgram(
                f"no program {name!r}; known: {known}. A path such as ./{name}.py runs a file", program=name
            )
        return program

    def refresh(self) -> None:
        """Read all folders and entry points again, and load what is new or changed. Blocks on the disk."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        self._broken.clear()
        if self._installed is None:
            self._installed = list(self._load_entry_points())
        by_name = {program.name: program for program in self._installed}
        for folder in self._folders:
            for path in sorted(folder.glob("*.py")):
                if path.name.startswith("_"):
                    continue
                try:
                    by_name.update((program.name, program) for program in self._load_file(path.resolve()))
                except AgentFailed as error:
                    self._broken[path.stem] = ProgramInfo(path.stem, "", "", str(path), error.message)
        self._by_name = by_name

    def listing(self) -> list[ProgramInfo]:
        """Every program by name, and every file that could not be loaded."""
        known = [program.info() for program in self._by_name.values()]
        return sorted([*known, *self._broken.values()], key=lambda info: info.name)

    def _load_path(self, path: Path, wanted: str) -> Program:
        if not path.is_file():
            raise UnknownProgram(f"no file {path}", program=str(path))
        programs = self._load_file(path.resolve())
        named = [program for program in programs if wanted in ("", program.name)]
        if len(named) == 1:
            return named[0]
        names = ", ".join(program.name for program in programs) or "none: mark a coroutine with @agent"
        raise UnknownProgram(f"{path} holds these agents: {names}; name one as {path}:NAME", program=str(path))

    def _load_file(self, path: Path) -> list[Program]:
        """The agents that the file defines. Raises `AgentFailed` with the traceback if it cannot be run."""
        changed = path.stat().st_mtime_ns
        loaded = self._files.get(path)
        if loaded is not None and loaded[0] == changed:
            return loaded[1]
        name = f"llmosd_program_{path.stem}_{hashlib.blake2b(bytes(path), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            programs = [
                Program(value, getattr(value, AGENT_ATTRIBUTE), str(path))
                for value in vars(module).values()
                if hasattr(value, AGENT_ATTRIBUTE) and value.__module__ == name
            ]
        except BaseException as error:
            raise AgentFailed(f"{path} cannot be loaded:\n{traceback.format_exc(limit=-3)}") from error
        self._files[path] = changed, programs
        return programs

    def _load_entry_points(self) -> Iterable[Program]:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            source = f"{entry.value} ({entry.dist.name if entry.dist else 'unknown'})"
            try:
                function = entry.load()
                mark: AgentMark = getattr(function, AGENT_ATTRIBUTE)
                yield Program(function, msgspec.structs.replace(mark, name=entry.name), source)
            except Exception:
                self._broken[entry.name] = ProgramInfo(entry.name, "", "", source, traceback.format_exc(limit=-3))
