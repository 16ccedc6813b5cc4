"""The commands that run programs and show submitted tasks: `run`, `attach` and `history`.

Called by the command line. Only the result of a task goes to standard output.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable

from ipc.errors import InvalidCall
from ipc.messages import Event
from ipc.syscalls import TaskInfo
from llmosd.cli import following, listings, show, values
from llmosd.cli.arguments import ArgumentReader
from llmosd.cli.options import Add, CommonOptions, add_timeout
from llmosd.cli.program_help import HelpOption
from llmosd.cli.stream import EventPrinter, Labels
from llmosd.cli.task_watch import TaskWatch
from llmosd.client import cursor
from llmosd.client.blocking import Client, Task

ARGUMENTS = "its arguments in order: texts, @FILE for the content of a file, - for standard input; with --json, JSON"
POLL_SECONDS = 0.5  # between two requests of `history --follow`
BEGINNING = (0, 0)  # the first event of a task that the daemon still retains


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("run", parents=[common.listing], add_help=False, help="run a program and print its result")
    command.add_argument(
        "-h", "--help", nargs=0, action=HelpOption, help="show this help; after PROGRAM, that of PROGRAM"
    )
    command.add_argument("program", help="a program of `llmos programs`, or the path of a Python file")
    command.add_argument("arguments", nargs="*", default=[], help=ARGUMENTS)
    command.add_argument("-a", "--arg", metavar="NAME=VALUE", action="append", default=[], help="an argument by name")
    command.add_argument("--priority", type=int, help="-20 to 20, higher is more urgent")
    command.add_argument("--deadline", type=values.seconds, metavar="S", help="end the task after S seconds")
    add_timeout(
        command,
        "wait at most S seconds, then end the task",
        "no result within {} s, so the task ends; use --detach to leave it running",
    )
    command.add_argument("--owner", help="the owner whose limits and share apply")
    command.add_argument("--name", help="register the process under this name")
    command.add_argument(
        "--limit",
        metavar="NAME=N",
        action="append",
        default=[],
        help="limit the usage of the process: tokens=1000, children=5, ... (repeatable)",
    )
    command.add_argument("-d", "--detach", action="store_true", help="print the id and the pid; the task goes on")
    command.add_argument("--key", help="repeating a submission with the same key makes no second task")
    command.add_argument("--durable", action="store_true", help="run as a durable agent, which survives the daemon")
    _add_streaming(command)
    command.set_defaults(command=run)

    command = add("attach", parents=[common.listing], help="print the output and the result of a submitted task")
    command.add_argument("id", help="the id of a task, as in `llmos history`")
    add_timeout(command, "wait at most S seconds; the task continues", "no result within {} s; the task continues")
    _add_streaming(command)
    command.set_defaults(command=attach)

    command = add("history", parents=[common.table], help="list submitted tasks, newest first")
    command.add_argument(
        "-f", "--follow", action="store_true", help="the last tasks, then a line for each new task and each end"
    )
    command.add_argument("--limit", type=int, metavar="N", help="at most N rows; default: 100, with --follow 10")
    command.add_argument("--before", metavar="ID", help="only tasks submitted before this one")
    command.set_defaults(command=history)


def _add_streaming(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="whether to print text as it is generated, and emitted values; the default is to do so on a terminal",
    )
    command.add_argument("--children", action="store_true", help="also stream the text of its children, with labels")


def run(client: Client, options: argparse.Namespace) -> int:
    if options.detach:
        options.late = "the task was not accepted within {} s; if you repeat it, use --key so that it runs once"
    reader = ArgumentReader(options.json)
    task = client.submit(
        values.program_path(options.program),
        positional=reader.positional(options.arguments),
        args=reader.named(options.arg),
        lenient=not options.json,
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
        show.value({"pid": task.pid, "id": task.id} if options.json else f"{task.id} {task.pid}", options.json)
        if not options.json:
            print(f"llmos: task {task.id}: `llmos attach {task.id}` shows its output", file=sys.stderr)
        return 0
    return _show(task, options, _printer(client, task, options), task.events())


def attach(client: Client, options: argparse.Namespace) -> int:
    task = client.attach(options.id, after=BEGINNING)
    printer = _printer(client, task, options)
    return _show(task, options, printer, following.events(client, task, printer.note))


def _printer(client: Client, task: Task, options: argparse.Namespace) -> EventPrinter:
    stream = options.children or sys.stdout.isatty() if options.stream is None else options.stream
    return EventPrinter(Labels(client, task.pid), stream=stream, children=options.children)


def _show(task: Task, options: argparse.Namespace, printer: EventPrinter, events: Iterable[Event]) -> int:
    if options.json:
        last = deque(events, maxlen=1).pop()
        pid = getattr(last, "pid", 0) or task.pid  # of the process that ended the task, maybe in a later run
        show.value({"pid": pid, "id": task.id, "result": cursor.final_value(last)}, as_json=True)
    else:
        printer.print(events)
    return 0


def history(client: Client, options: argparse.Namespace) -> int:
    if options.follow:
        return _follow_history(client, options)
    limit = 100 if options.limit is None else options.limit
    rows = client.history(limit, before=options.before)
    listings.rows(TaskInfo, rows, options.json, options.wide)
    if len(rows) == limit:
        print(f"llmos: there may be more: --before {rows[-1].id}", file=sys.stderr)
    return 0


def _follow_history(client: Client, options: argparse.Namespace) -> int:
    """Print a line for each of the last tasks, then for each new task and each end, until the user interrupts it."""
    if options.before is not None:
        raise InvalidCall("`llmos history --follow` shows new tasks, so it takes no --before")
    limit = 10 if options.limit is None else options.limit
    if limit < 0:
        raise InvalidCall(f"`llmos history --follow`: --limit must be 0 or more, not {limit}")
    watch = TaskWatch(lambda limit, before: client.history(limit, before=before))
    rows = watch.first(limit)
    while True:
        for row in rows:
            listings.task_line(row, options.json, options.wide)
        time.sleep(POLL_SECONDS)
        rows = watch.poll()
