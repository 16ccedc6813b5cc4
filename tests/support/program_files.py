"""Folders with program files, and a loader that finds programs there and in no installed package.

Used by the tests of the program loader. It writes files and never loads one.
"""

from __future__ import annotations

import os
from pathlib import Path

from kernel.programs.installed import InstalledPrograms
from kernel.programs.loader import ProgramLoader

HEADER = "from llmosd import Context, agent, tool\n"


def loader(*folders: Path) -> ProgramLoader:
    """A loader for programs in `folders`."""
    programs = ProgramLoader(folders)
    programs.installed = InstalledPrograms(tuple)
    return programs


def write(path: Path, text: str, when: int = 1) -> Path:
    """Write a file, and the folders above it, with `when` as its modification time in nanoseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(when, when))
    return path


def agent_file(path: Path, name: str, body: str = "return None", *, before: str = "", when: int = 1) -> Path:
    """Write a file with one agent. `before` are the lines before it, `body` is one line."""
    return write(path, f"{HEADER}{before}\n@agent\nasync def {name}(ctx: Context):\n    {body}\n", when)
