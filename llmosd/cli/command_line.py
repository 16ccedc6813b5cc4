"""The command line of `llmos`: its commands, and the messages and exit codes of errors.

Called by the console script. The files of `llmosd.cli.commands` define the commands; this module implements none. Exit
codes: 0 done, 1 the agent or the command failed, 2 wrong usage, 3 no daemon, 124 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
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
    NotFound,
    SocketPathInvalid,
    TimedOut,
)
from llmosd.cli import targets
from llmosd.cli.commands import control, daemon, messages, processes, resources, simulation, tasks
from llmosd.cli.options import CommonOptions
from llmosd.cli.parser import Parser
from llmosd.client.blocking import Client

DONE, FAILED, USAGE, NO_DAEMON, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 124, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has exited. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run(options: argparse.Namespace) -> int:
    command: Callable[..., int] = options.command
    try:
        if getattr(options, "needs_no_daemon", False):
            return command(options)
        with Client(options.socket, name="llmos") as client:
            targets.resolve(client, options)
            return command(client, options)
    except (NoDaemon, ConnectionLost, SocketPathInvalid) as error:
        return _complain(error, NO_DAEMON)
    except TimedOut as error:
        return _complain(error, TIMED_OUT)
    except (InvalidCall, InvalidPolicy, NotFound) as error:
        return _complain(error, USAGE)
    except LlmosError as error:
        return _complain(error, FAILED)


def _complain(error: LlmosError, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    text = error.data.get("traceback") or error.message
    print(f"llmos: {type(error).__name__}: {text}", file=sys.stderr)
    return code


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
    for subject in (tasks, processes, control, messages, resources, daemon, simulation):
        subject.add_commands(add, common)
    root.set_defaults(parser=root)  # for `completion`
    return root
