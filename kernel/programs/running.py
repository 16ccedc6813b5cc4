"""Runs the files of agents and tools, and looks for what they define.

The program loader calls `run_file` and `define_all` in jobs, because they run code of users. They never look for
changes of the files.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.errors import AgentFailed, Busy
from kernel.lib.failures import traceback_text
from kernel.programs.jobs import TimeLimit
from kernel.programs.neighbours import FolderModules, ProgramModule, StillRunning
from kernel.programs.origin import printing_for
from kernel.programs.program import ProgramFile
from kernel.programs.tool import Tool


def run_file(modules: FolderModules, key: str, file: str, title: str) -> ProgramFile:
    """Run a file and the files that it imports. Raises `AgentFailed`, and `Busy` if one of them runs already."""
    try:
        with printing_for(file):
            module = modules.load(key)
            define_all(module.folder)
        return _defined(module)
    except TimeLimit:
        raise
    except StillRunning as error:
        raise Busy(f"{title} yet: {error}", retry_after=1.0) from None
    except BaseException as error:
        raise AgentFailed(f"{title}:\n{traceback_text(error)}") from error


def _defined(module: ProgramModule) -> ProgramFile:
    """The agents and tools of a loaded module, made once."""
    if module.defines is None:
        module.defines = ProgramFile(module)
    file: ProgramFile = module.defines
    return file


def define_all(modules: FolderModules) -> None:
    """Look for agents and tools in all loaded modules of a folder."""
    for module in modules.loaded():
        _defined(module)


def tools_in(modules: FolderModules) -> Iterator[Tool]:
    """The tools of all loaded modules of a folder."""
    for module in modules.loaded():
        if module.defines is not None:
            yield from module.defines.tools
