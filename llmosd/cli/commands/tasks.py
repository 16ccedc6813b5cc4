"""The commands that run programs and show submitted tasks: `run`, `attach` and `history`.

Called by the command line. Only the result of a task goes to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable

from ipc.messages import Event
from ipc.syscalls import TaskInfo
from llmosd.cli import following, listings, show, values
from llmosd.cli.options import Add, CommonOptions
from llmosd.cli.stream import print_events
from llmosd.client import cursor
from llmosd.client.blocking import Client, Task

BEGINNING = (0, 0)  # the first event of a task that the daemon still retains


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("run", parents=[common.listing], help="run a program and print its result")
    command.add_argument("program", help="a program of `llmos programs`, or the path of a Python file")
    command.add_argument("arguments", nargs="*", default=[], help="its arguments in order; - reads standard input")
    command.add_argument("-a", "--arg", metavar="NAME=VALUE", action="append", default=[], help="an argument by name")
    command.add_argument("--priority", type=int, help="-20 to 20, higher is more urgent")
    command.add_argument("--deadline", type=float, metavar="S", help="end the task after S seconds")
    command.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds, then end the task")
    command.add_argument("--owner", help="the owner whose limits and share apply")
    command.add_argument("--name", help="register the process under this name")
    command.add_argument(
        "--limit",
        metavar="NAME=N",
        action="append",
        default=[],
        help="limit the usage of the process: tokens=1000, children=5, ... (repeatable)",
    )
    command.add_argument("-d", "--detach", action="store_true", help="print the pid and leave the task running")
    command.add_argument("--key", help="repeating a submission with the same key makes no second task")
    command.add_argument("--durable", action="store_true", help="run as a durable agent, which survives the daemon")
    command.set_defaults(command=run)

    command = add("attach", parents=[common.listing], help="print the output and the result of a submitted task")
    command.add_argument("id", help="the id of a task, as in `llmos history`")
    command.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds; the task continues")
    command.set_defaults(command=attach)

    command = add("history", parents=[common.table], help="list submitted tasks, newest first")
    command.add_argument("--limit", type=int, metavar="N", default=100, help="at most N rows")
    command.add_argument("--before", metavar="ID", help="only tasks submitted before this one")
    command.set_defaults(command=history)


def run(client: Client, options: argparse.Namespace) -> int:
    positional = [sys.stdin.read() if text == "-" else text for text in options.arguments]
    task = client.submit(
        values.program_path(options.program),
        dict(values.named_argument(argument) for argument in options.arg),
        positional=positional,
        lenient=True,
        priority=options.priority,
        deadline=options.deadline,
        owner=options.owner,
        detach=options.detach,
        name=options.name,
        limits=values.limits(options.limit),
        key=options.key,
        durable=options.durable,
    )
    if options.detach:
        show.value({"pid": task.pid, "id": task.id} if options.json else task.pid, options.json)
        if not options.json:
            print(f"llmos: task {task.id}: `llmos attach {task.id}` shows its output", file=sys.stderr)
        return 0
    return _show(task, options, following.attached(task, options.timeout))


def attach(client: Client, options: argparse.Namespace) -> int:
    task = client.attach(options.id, after=BEGINNING)
    return _show(task, options, following.events(client, task, options.timeout))


def _show(task: Task, options: argparse.Namespace, events: Iterable[Event]) -> int:
    if options.json:
        last = deque(events, maxlen=1).pop()
        show.value({"pid": task.pid, "id": task.id, "result": cursor.final_value(last)}, as_json=True)
    else:
        print_events(events)
    return 0


def history(client: Client, options: argparse.Namespace) -> int:
    rows = client.history(options.limit, before=options.before)
    listings.rows(TaskInfo, rows, options.json, options.wide)
    if len(rows) == options.limit:
        print(f"llmos: there may be more: --before {rows[-1].id}", file=sys.stderr)
    return 0
