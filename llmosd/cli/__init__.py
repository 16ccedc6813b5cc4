"""The `llmos` command: controls the daemon from a terminal or a script.

The console script calls `main`. A small command spends most of its time on the start of the interpreter and on
imports, so `main` makes imports cheaper before it loads the rest of the room. It never imports asyncio.
"""

from __future__ import annotations

import gc
import sys

from llmosd.standard_streams import INTERRUPTED, prepare_command


def main() -> int:
    """Run one command and return its exit code."""
    prepare_command()  # before anything opens a file, which could get the number of a closed stream
    gc.disable()  # a short process makes no garbage worth collecting, and imports would trigger the collector
    try:
        _import_msgspec_without_extras()
        from llmosd.cli.command_line import main
    except KeyboardInterrupt:
        return INTERRUPTED
    return main()


def _import_msgspec_without_extras() -> None:
    """Import msgspec without typing_extensions, even where that is installed.

    msgspec would import typing_extensions for two names that we do not use, and that import takes a sixth of the time
    of a small command.
    """
    if "typing_extensions" not in sys.modules:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        try:
            import msgspec  # noqa: F401
        finally:
            del sys.modules["typing_extensions"]
