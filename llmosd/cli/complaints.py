"""Reports errors to the user, on standard error.

Called by the command line for the error that ends a command, and by `chat`, which goes on. It never raises.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from ipc.errors import LlmosError
from llmosd.printable import printable


def complain(error: LlmosError) -> None:
    """Print the class and the text of `error`, after all output that came before it."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"llmos: {type(error).__name__}: {printable(complaint(error))}", file=sys.stderr)


def complaint(error: LlmosError) -> str:
    """The text of `error`: one sentence with its place, and the traceback only if no crash report has it."""
    traceback, crash = error.data.get("traceback"), error.data.get("crash")
    text = located(error.message, error.data)
    if isinstance(crash, int):
        return f"{text}\nllmos: see `llmos crashes {crash}` for the whole report"
    return f"{text}\n{traceback}" if traceback else text


def located(message: str, facts: Mapping[str, Any]) -> str:
    """The message of an error behind its place, "FILE:LINE: ", if its facts name one and the message does not."""
    place = facts.get("place")
    where = f"{str(place).rpartition('/')[2]}: " if place else ""
    return message if message.startswith(where) else f"{where}{message}"
