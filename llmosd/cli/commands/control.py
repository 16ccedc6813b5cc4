"""The commands that control processes: `wait`, `kill`, `suspend`, `resume` and `nice`.

Called by the command line. A command that names several processes stops at the first error.
"""

from __future__ import annotations

import argparse
import sys

from ipc.syscalls import Kill, Nice, Resume, Suspend
from llmosd.cli import show, targets, values
from llmosd.cli.options import Add, CommonOptions, add_timeout
from llmosd.client.blocking import Client


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("wait", parents=[common.process], help="wait for a process and print its result")
    add_timeout(command, "wait at most S seconds", "the process did not end within {} s; it continues")
    command.set_defaults(command=wait)

    command = add("kill", parents=[common.processes_or_tasks], help="end processes and their children, or tasks")
    command.set_defaults(command=kill)

    for name, text, function in (
        ("suspend", "stop processes and take their generations off their slots", suspend),
        ("resume", "let suspended processes continue", resume),
    ):
        add(name, parents=[common.processes], help=text).set_defaults(command=function)

    command = add("nice", parents=[common.listing], help="change the priority of a process")
    command.add_argument("target", type=targets.target, metavar="PROCESS[:THREAD]")
    command.add_argument(
        "priority",
        type=values.priority,
        help="-20 to 20, higher is more urgent; +5 adds 5 to the current priority",
    )
    command.add_argument(
        "-r", "--relative", action="store_true", help="add to the current priority, even without a plus sign"
    )
    command.set_defaults(command=nice)


def wait(client: Client, options: argparse.Namespace) -> int:
    show.result(client.wait(options.pid), options.json)
    return 0


def kill(client: Client, options: argparse.Namespace) -> int:
    for one in options.target:
        if not isinstance(one, targets.TaskId):
            client.request(Kill(*one))
        elif (ended := client.kill_task(one.id)) != "killed":
            print(f"llmos: task {one.id} has ended before ({ended})", file=sys.stderr)
    return 0


def suspend(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Suspend(pid, thread))
    return 0


def resume(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Resume(pid, thread))
    return 0


def nice(client: Client, options: argparse.Namespace) -> int:
    pid, thread = options.target
    priority, relative = options.priority
    show.value(client.request(Nice(pid, priority, relative or options.relative, thread)), options.json)
    return 0
