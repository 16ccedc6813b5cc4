"""The commands that list processes: `ps`, `tree`, `top`, `threads`, `logs` and `crashes`.

Called by the command line. They never change a process; `llmosd.cli.commands.control` has the commands that do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from ipc.errors import InvalidCall, MissingExtra, UnknownProcess
from ipc.syscalls import Crashes, CrashReport, ProcessInfo, ThreadInfo, Threads
from llmosd.cli import listings, show, targets
from llmosd.cli.options import PROCESS, Add, CommonOptions
from llmosd.client.blocking import Client

PAGE = 10_000  # rows of the process table per request


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("ps", parents=[common.table], help="list processes")
    command.add_argument("-a", "--all", action="store_true", help="also list the connections of clients")
    command.add_argument("--tree", action="store_true", help="children under their parents")
    command.add_argument("--limit", type=int, metavar="N", default=10_000, help="at most N rows")
    command.add_argument("--start", type=int, metavar="PID", default=0, help="only processes from this number on")
    command.set_defaults(command=ps)

    command = add("tree", parents=[common.table], help="draw processes under their parents")
    command.add_argument(
        "pid", type=targets.process, metavar="PROCESS", nargs="?", help="only this process and its descendants"
    )
    command.add_argument("-a", "--all", action="store_true", help="also list the connections of clients")
    command.set_defaults(command=tree)

    command = add("top", parents=[common.daemon, common.wide], help="watch and control processes, live")
    command.set_defaults(command=top)

    command = add("threads", parents=[common.process, common.wide], help="list the threads of a process")
    command.set_defaults(command=threads)

    command = add("logs", parents=[common.process], help="print the log of a process")
    command.add_argument("-f", "--follow", action="store_true", help="print new lines until the process ends")
    command.set_defaults(command=logs)

    command = add("crashes", parents=[common.table], help="list failed processes, or show one failure in full")
    command.add_argument("pid", type=targets.process, metavar="PROCESS", nargs="?", help=PROCESS)
    command.set_defaults(command=crashes)


def ps(client: Client, options: argparse.Namespace) -> int:
    if options.tree:
        return tree(client, options)
    rows = client.ps(clients=options.all, tasks=True, start=options.start, limit=options.limit)
    listings.rows(ProcessInfo, rows, options.json, options.wide)
    if len(rows) == options.limit:
        more = "a higher --limit" if rows[-1].task else f"--start {rows[-1].pid + 1}"
        print(f"llmos: there may be more: {more}", file=sys.stderr)
    return 0


def tree(client: Client, options: argparse.Namespace) -> int:
    rows = list(all_processes(client, clients=options.all))
    if options.json:
        listings.rows(ProcessInfo, rows, as_json=True)
        return 0
    root = getattr(options, "pid", None)
    if root is not None and all(row.pid != root for row in rows):
        raise UnknownProcess(f"no living process {root}; `llmos ps` lists them", pid=root)
    listings.tree(rows, root, options.wide)
    return 0


def all_processes(client: Client, *, clients: bool) -> Iterator[ProcessInfo]:
    """Every row of the process table, page by page."""
    start = 0
    while rows := client.ps(clients=clients, start=start, limit=PAGE):
        yield from rows
        start = rows[-1].pid + 1


def top(client: Client, options: argparse.Namespace) -> int:
    """Show the processes in full screen, over a separate connection. Raises `MissingExtra` without textual."""
    import importlib.util

    if importlib.util.find_spec("textual") is None:
        raise MissingExtra(
            "`llmos top` needs textual: pip install 'llmosd[top]', or use `llmos ps` for a single listing", extra="top"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidCall("`llmos top` needs a terminal; `llmos ps` prints a single listing")
    from llmosd.cli.top import Top

    screen = Top(client.socket, wide=options.wide)
    screen.run()
    return screen.return_code or 0


def threads(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ThreadInfo, client.request(Threads(options.pid)), options.json, options.wide)
    return 0


def logs(client: Client, options: argparse.Namespace) -> int:
    lines = client.follow(options.pid) if options.follow else iter(client.logs(options.pid))
    for line in lines:
        show.log_line(line, options.json)
    return 0


def crashes(client: Client, options: argparse.Namespace) -> int:
    reports: list[CrashReport] = client.request(Crashes(options.pid))
    if options.pid is None or options.json:
        listings.rows(CrashReport, reports, options.json, options.wide)
    else:
        for report in reports:
            listings.crash(report, options.wide)
    return 0
