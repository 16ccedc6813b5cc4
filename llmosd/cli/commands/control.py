"""The commands that control processes: `wait`, `kill`, `suspend`, `resume` and `nice`.

Called by the command line. A command that names several processes stops at the first error.
"""

from __future__ import annotations

import argparse

from ipc.syscalls import Kill, Nice, Resume, Suspend
from llmosd.cli import show, values
from llmosd.cli.options import Add, CommonOptions
from llmosd.client.blocking import Client


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("wait", parents=[common.process], help="wait for a process and print its result")
    command.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")
    command.set_defaults(command=wait)

    for name, text, function in (
        ("kill", "end processes and their children", kill),
        ("suspend", "stop processes and take their generations off their slots", suspend),
        ("resume", "let suspended processes continue", resume),
    ):
        add(name, parents=[common.processes], help=text).set_defaults(command=function)

    command = add("nice", parents=[common.listing], help="change the priority of a process")
    command.add_argument("target", type=values.target, metavar="PID[:THREAD]")
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
    show.result(client.wait(options.pid, options.timeout), options.json)
    return 0


def kill(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Kill(pid, thread))
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
