"""The options that several commands have in common.

Made once by `llmosd.cli.command_line`, and used by each file of `llmosd.cli.commands`. It parses nothing itself.
"""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from llmosd.cli import targets, values

PROCESS = "the number of a process, as in `llmos ps`, or its registered name"


class Add(Protocol):
    """Adds a command to the command line, and returns the parser of its options."""

    def __call__(self, name: str, /, **options: Any) -> argparse.ArgumentParser: ...


def add_timeout(command: argparse.ArgumentParser, text: str, late: str) -> None:
    """Add `--timeout` with the help `text`. `late`: the complaint when it has passed; {} stands for the seconds.

    The time runs from the start of the command. It covers the connection, all calls and all waits.
    """
    command.add_argument("--timeout", type=values.seconds, metavar="S", help=text)
    command.set_defaults(late=late)


class CommonOptions:
    """Parsers to pass as `parents`.

    `daemon`: commands that contact a daemon. `listing`: those that can print JSON as well. `wide`: those that print a
    table. `table`: those that print a table or JSON. `process`: those about one process. `processes`: those about
    several. `process_or_task` and `processes_or_tasks` also take ids of tasks. `llmosd.cli.targets` replaces the names
    among them by numbers.
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
        self.process.add_argument("pid", type=targets.process, metavar="PROCESS", help=PROCESS)
        self.processes = argparse.ArgumentParser(add_help=False, parents=[self.daemon])
        self.processes.add_argument(
            "target",
            type=targets.target,
            metavar="PROCESS[:THREAD]",
            nargs="+",
            help="the numbers or registered names of processes, or their threads, as in `llmos threads`",
        )
        self.process_or_task = argparse.ArgumentParser(add_help=False, parents=[self.listing])
        self.process_or_task.add_argument(
            "pid", type=targets.process_or_task, metavar="PROCESS|TASK", help=f"{PROCESS}; or the id of a task"
        )
        self.processes_or_tasks = argparse.ArgumentParser(add_help=False, parents=[self.daemon])
        self.processes_or_tasks.add_argument(
            "target",
            type=targets.target_or_task,
            metavar="PROCESS[:THREAD]|TASK",
            nargs="+",
            help="processes, or their threads, as in `llmos threads`; or the ids of tasks, as in `llmos history`",
        )
