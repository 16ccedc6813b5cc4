"""The command line of `llmos`: its commands, and the messages and exit codes of errors.

Called by `llmosd.cli`. The files of `llmosd.cli.commands` define the commands; this module implements none. Exit codes:
0 done, 1 the agent or the command failed, 2 wrong usage, 3 no daemon, 124 the --timeout of the command passed, 130
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import llmosd
from ipc.errors import (
    ConnectionLost,
    InvalidCall,
    InvalidPolicy,
    LlmosError,
    NoDaemon,
    NotEncodable,
    NotFound,
    SocketPathInvalid,
    TimedOut,
)
from ipc.messages import State
from llmosd.cli import targets, values
from llmosd.cli.commands import chat, control, daemon, explain, messages, processes, resources, simulation, tasks
from llmosd.cli.complaints import complain
from llmosd.cli.options import CommonOptions
from llmosd.cli.parser import Parser
from llmosd.client.blocking import Client
from llmosd.printable import printable_line
from llmosd.standard_streams import FAILED, guard

USAGE, NO_DAEMON, TIMED_OUT = 2, 3, 124


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return guard("llmos", lambda: _run(given))


def _run(arguments: Sequence[str]) -> int:
    options = parser().parse(arguments)
    command: Callable[..., int] = options.command
    timeout: float | None = getattr(options, "timeout", None)
    try:
        if getattr(options, "needs_no_daemon", False):
            return command(options)
        client = Client(options.socket, name="llmos")
        client.on_wait = _print_wait
        with client.expiring(timeout, "no answer"), client:
            targets.resolve(client, options)
            return command(client, options)
    except LlmosError as error:
        if isinstance(error, NotEncodable) and not _ended(error):
            reason = values.not_sendable(arguments)
            error = error if reason is None else InvalidCall(reason)
        code = exit_code(error, timeout)
        if code == TIMED_OUT:
            error = TimedOut(options.late.format(f"{timeout:g}"))
        complain(error)
        return code


def _print_wait(state: State) -> None:
    """Say what a task waits for before it begins. The command prints nothing else until then."""
    print(printable_line(f"llmos: {state.state}: {state.detail}"), file=sys.stderr, flush=True)


def exit_code(error: LlmosError, timeout: float | None) -> int:
    """The exit code for an error: by its origin, and only then by its class. `timeout`: that of the command.

    An error that ended a process is a failure of the process, even if a mistake of the user has the same class.
    """
    if _ended(error):
        return FAILED
    if isinstance(error, TimedOut) and timeout is not None:
        return TIMED_OUT
    if isinstance(error, NoDaemon | ConnectionLost | SocketPathInvalid):
        return NO_DAEMON
    return USAGE if isinstance(error, InvalidCall | InvalidPolicy | NotFound) else FAILED


def _ended(error: LlmosError) -> bool:
    """Whether `error` ended a process."""
    return bool(error.ended_process or error.data.get("ended"))


def parser() -> Parser:
    """The command line of `llmos`."""
    root = Parser(prog="llmos", description="Run, watch and control agents of an llmosd daemon.")
    root.add_argument("--socket", metavar="PATH", help="the daemon's Unix socket")
    root.add_argument("--version", action="version", version=f"llmos {llmosd.__version__}", help="print the version")
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    root.commands = commands

    def add(name: str, /, **options: Any) -> Parser:
        command: Parser = commands.add_parser(name, **options)
        command.set_defaults(parser_of_command=command)
        return command

    common = CommonOptions()
    for subject in (tasks, chat, processes, explain, control, messages, resources, daemon, simulation):
        subject.add_commands(add, common)
    root.set_defaults(parser=root)  # for `completion`
    return root
