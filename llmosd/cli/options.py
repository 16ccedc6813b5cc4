"""The options that several commands have in common.

Made once by `llmosd.cli.command_line`, and used by each file of `llmosd.cli.commands`. It parses nothing itself.
"""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from llmosd.cli import values


class Add(Protocol):
    """Adds a command to the command line, and returns the parser of its options."""

    def __call__(self, name: str, /, **options: Any) -> argparse.ArgumentParser: ...


class CommonOptions:
    """Parsers to pass as `parents`.

    `daemon`: commands that contact a daemon. `listing`: those that can print JSON as well. `wide`: those that print a
    table. `table`: those that print a table or JSON. `process`: those about one process. `processes`: those about
    several.
    """

    def __init__(self) -> None:
        self.daemon = argparse.ArgumentParser(add_help=False)
        self.daemon.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's Unix socket")
        self.listing = argparse.ArgumentParser(add_help=False, parents=[self.daemon])
        self.listing.add_argument("--json", action="store_true", help="print JSON")
        self.wide = argparse.ArgumentParser(add_help=False)
        self.wide.add_argument("--wide", action="store_true", help="show all columns in full, also on a narrow screen")
        self.table = argparse.ArgumentParser(add_help=False, parents=[self.listing, self.wide])
        self.process = argparse.ArgumentParser(add_help=False, parents=[self.listing])
        self.process.add_argument("pid", type=int, help="the number of a process, as in `llmos ps`")
        self.processes = argparse.ArgumentParser(add_help=False, parents=[self.daemon])
        self.processes.add_argument(
            "target",
            type=values.target,
            metavar="PID[:THREAD]",
            nargs="+",
            help="processes of `llmos ps`, or threads of `llmos threads`",
        )
