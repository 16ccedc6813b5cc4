"""The command line of `llmos`: its commands, and the messages and exit codes of errors.

Called by `llmosd.cli`. The files of `llmosd.cli.commands` define the commands; this module implements none. Exit codes:
0 done, 1 the agent or the command failed, 2 wrong usage, 3 no daemon, 124 the --timeout of the command passed, 130
interrupted.
"""

from __future__ import annotations

import contextlib
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
from llmosd.cli import targets, values
from llmosd.cli.commands import control, daemon, explain, messages, processes, resources, simulation, tasks
from llmosd.cli.options import CommonOptions
from llmosd.cli.parser import Parser
from llmosd.client.blocking import Client
from llmosd.printable import printable
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
        with client.expiring(timeout, "no answer"), client:
            targets.resolve(client, options)
            return command(client, options)
    except LlmosError as error:
        if isinstance(error, NotEncodable) and (reason := values.not_text(arguments)) is not None:
            error = InvalidCall(reason)
        code = exit_code(error, timeout)
        if code == TIMED_OUT:
            error = TimedOut(options.late.format(f"{timeout:g}"))
        return _complain(error, code)


def exit_code(error: LlmosError, timeout: float | None) -> int:
    """The exit code for an error: by its origin, and only then by its class. `timeout`: that of the command.

    An error that ended a process is a failure of the process, even if a mistake of the user has the same class.
    """
    if error.ended_process or error.data.get("ended"):
        return FAILED
    if isinstance(error, TimedOut) and timeout is not None:
        return TIMED_OUT
    if isinstance(error, NoDaemon | ConnectionLost | SocketPathInvalid):
        return NO_DAEMON
    return USAGE if isinstance(error, InvalidCall | InvalidPolicy | NotFound) else FAILED


def _complain(error: LlmosError, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"llmos: {type(error).__name__}: {printable(complaint(error))}", file=sys.stderr)
    return code


def complaint(error: LlmosError) -> str:
    """The text of `error`: one sentence with its place, and the traceback only if no crash report has it."""
    place, traceback, crash = (error.data.get(name) for name in ("place", "traceback", "crash"))
    where = f"{str(place).rpartition('/')[2]}: " if place else ""
    text = error.message if error.message.startswith(where) else f"{where}{error.message}"
    if isinstance(crash, int):
        return f"{text}\nllmos: see `llmos crashes {crash}` for the whole report"
    return f"{text}\n{traceback}" if traceback else text


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
    for subject in (tasks, processes, explain, control, messages, resources, daemon, simulation):
        subject.add_commands(add, common)
    root.set_defaults(parser=root)  # for `completion`
    return root
