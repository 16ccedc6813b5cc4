"""Runs the examples of a document in the order in which a reader meets them, in one shell and one folder.

A `console` block is a transcript: commands behind `$ `, and what they print. In expected output `...` stands for any
text, alone in a line for any lines; runs of spaces are one space. A `python` block whose first line is a comment with a
file name becomes that file; any other is run, and a `text` block right after it is its output. A `toml` block with a
file name becomes a file, too. Unless the first command of a document starts a daemon, one with the simulated model
runs.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import SCRIPTS, eventually
from tests.support.documents import Document, Fence

MARK = "-- end of command --"
SIMULATED = "llmosd --model simulated &"


class Shell:
    """One bash in `folder`, with a daemon's socket, state and settings of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "COLUMNS": "80",
            "HF_HUB_OFFLINE": "1",
            "LLMOSD_SOCKET": str(folder / "llmosd.sock"),
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "XDG_STATE_HOME": str(folder / ".state"),
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=self.environment,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Run `command`; return its output. A daemon in the background prints to a file; wait until it answers."""
        if re.match(r"llmosd\b.*&$", command):
            self._send(f"{command[:-1]} >llmosd.log 2>&1 &")
            try:
                eventually(self._answers, "a daemon answers", 60.0)
            except AssertionError as error:
                raise AssertionError(f"{error}:\n{self._log()}") from None
            return ""
        return self._send(command)

    def python(self, code: str) -> str:
        """Run a script; return its output."""
        return self._send(f"{shlex.quote(sys.executable)} - <<'END OF SCRIPT'\n{code}\nEND OF SCRIPT")

    def close(self) -> None:
        """End the shell and all that it started, a hanging command too. Drivers end with their daemon."""
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()

    def _send(self, text: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {text}\n}} </dev/null\nprintf '\\n%s\\n' '{MARK}'\n")
        self._bash.stdin.flush()
        printed = ""
        while (line := self._bash.stdout.readline()) != f"{MARK}\n":
            assert line, f"the shell ended after\n{printed}"
            printed += line
        return printed.removesuffix("\n")

    def _answers(self) -> bool:
        ping = [str(SCRIPTS / "llmos"), "ping"]
        return subprocess.run(ping, env=self.environment, capture_output=True, check=False).returncode == 0

    def _log(self) -> str:
        log = self.folder / "llmosd.log"
        return log.read_text() if log.exists() else ""


def commands(transcript: str) -> Iterator[tuple[str, str]]:
    """The commands of a `console` block, each with its expected output."""
    command, output = "", ""
    for line in transcript.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:].rstrip("\n"), ""
        elif line.startswith("> "):
            command += "\n" + line[2:].rstrip("\n")
        else:
            output += line
    if command:
        yield command, output


def fits(expected: str, printed: str) -> bool:
    """Whether the printed text matches the expected one."""
    pattern = ""
    for line in _lines(expected):
        if line == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", line)) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip("\n").splitlines()] if text.strip() else []


def run(document: Document, folder: Path) -> Iterator[str]:
    """Run all examples; yield a description of each whose output differs from the document."""
    fences = document.fences
    first = next((fence for fence in fences if fence.language == "console"), None)
    shell = Shell(folder)
    try:
        if first is None or not first.text.startswith("$ llmosd "):
            shell.run(SIMULATED)
        for fence, after in zip(fences, [*fences[1:], None], strict=True):
            yield from _run_fence(shell, document, fence, after)
    finally:
        shell.close()


def _run_fence(shell: Shell, document: Document, fence: Fence, after: Fence | None) -> Iterator[str]:
    place = f"{document.name}:{fence.line}"
    if fence.language in {"python", "toml"} and fence.file is not None:
        (shell.folder / fence.file).write_text(fence.text)
    elif fence.language == "python":
        printed = shell.python(fence.text)
        if after is not None and after.language == "text":
            if not fits(after.text, printed):
                yield f"{place} printed\n{printed}\ninstead of\n{after.text}"
        elif "Traceback" in printed:
            yield f"{place} failed:\n{printed}"
    elif fence.language == "console":
        for command, expected in commands(fence.text):
            printed = shell.run(command)
            if not fits(expected, printed):
                yield f"{place} $ {command}\nprinted\n{printed}\ninstead of\n{expected}"
