"""The `llmos` command: talks to the daemon from a terminal or a script.

The console script calls `main`. Most of what a small command costs is the start of the interpreter and its imports,
so what can be left out of them is left out here, before anything else is loaded.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run one command; its exit code."""
    gc.disable()  # a short life makes no garbage worth collecting, and imports make the collector run
    _import_msgspec_without_extras()
    from llmosd.cli.command_line import main

    return main()


def _import_msgspec_without_extras() -> None:
    """Keep msgspec from importing typing_extensions, where that is installed.

    It would use two names of it that we do not, at the price of a sixth of the whole command.
    """
    if "typing_extensions" not in sys.modules:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        try:
            import msgspec  # noqa: F401
        finally:
            del sys.modules["typing_extensions"]
