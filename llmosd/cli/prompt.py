"""Reads the lines of `llmos chat`: with editing and a history on a terminal, and as they come from a pipe.

Used by the command `chat`. The history is a file that only this user can read. It never contacts the daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from ipc.errors import BadArguments
from kernel.lib.private_files import make_private, open_private
from llmosd.cli import inputs
from llmosd.folders import state_folder

MAX_HISTORY = 1000  # lines in the file


class Prompt:
    """The user's end of a conversation. `interactive`: standard input and output are a terminal.

    As a context manager, it loads the history and stores it again. A history that cannot be read or written, and a
    Python without the module `readline`, are no errors.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: ModuleType | None = None
        self._file = state_folder() / "chat_history"

    def __enter__(self) -> Self:
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                _load(readline, self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline is not None:
            _store(self._readline, self._file)

    def read(self) -> str | None:
        """The next text of the user; None at the end of the input. A backslash at the end continues a line.

        Raises `BadArguments` for a line that is no text.
        """
        lines: list[str] = []
        while (line := self._line("... " if lines else "> ")) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    def _line(self, prompt: str) -> str | None:
        if not self.interactive:
            return inputs.read_line()
        try:
            line = input(prompt)
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise BadArguments(f"the terminal sent text that is not {error.encoding}") from None
        try:
            line.encode()
        except UnicodeEncodeError:  # Python does not decode bytes that are no text in the locale
            return inputs.line_text(line.encode(sys.stdin.encoding, "surrogateescape"))
        return line


def _load(readline: ModuleType, file: Path) -> None:
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(MAX_HISTORY)


def _store(readline: ModuleType, file: Path) -> None:
    with contextlib.suppress(OSError):
        make_private(file.parent)
        os.close(open_private(file, os.O_WRONLY | os.O_CREAT))  # `readline` would let others read a new file
        readline.write_history_file(file)
