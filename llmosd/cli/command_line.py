"""The command line of `llmos`: its options, and how errors become messages and exit codes.

Each subcommand is one function of `llmosd.cli.commands`. Exit codes: 0 done, 1 the agent failed, 2 usage, 3 no
daemon, 124 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from ipc.errors import ConnectionLost, InvalidCall, LlmosError, NoDaemon, NotFound, SocketPathInvalid, TimedOut
from llmosd.cli import commands
from llmosd.client import Client

DONE, FAILED, USAGE, NO_DAEMON, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 124, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run(options: argparse.Namespace) -> int:
    command: Callable[..., int] = options.command
    if command is commands.completion:
        return command(parser(), options)
    try:
        with Client(options.socket, name="llmos") as client:
            return command(client, options)
    except (NoDaemon, ConnectionLost, SocketPathInvalid) as error:
        return _complain(error, NO_DAEMON)
    except TimedOut as error:
        return _complain(error, TIMED_OUT)
    except (InvalidCall, NotFound) as error:
        return _complain(error, USAGE)
    except LlmosError as error:
        return _complain(error, FAILED)


def _complain(error: LlmosError, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    text = error.data.get("traceback") or error.message
    print(f"llmos: {type(error).__name__}: {text}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The command line of `llmos`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's Unix socket")
    listing = argparse.ArgumentParser(add_help=False, parents=[common])
    listing.add_argument("--json", action="store_true", help="print JSON")
    process = argparse.ArgumentParser(add_help=False, parents=[common])
    process.add_argument("pid", type=int, nargs="+", help="process number, as in `llmos ps`")

    root = argparse.ArgumentParser(prog="llmos", description="Runs and watches agents of a llmosd daemon.")
    root.add_argument("--socket", metavar="PATH", help="the daemon's Unix socket")
    add = root.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser

    run = add("run", parents=[listing], help="run a program and print what it answers")
    run.add_argument("program", help="a program of `llmos programs`, or the path of a Python file")
    run.add_argument("arguments", nargs="*", default=[], help="its arguments in order; - reads standard input")
    run.add_argument("-a", "--arg", metavar="NAME=VALUE", action="append", default=[], help="an argument by name")
    run.add_argument("--priority", type=int, help="-20 to 20, higher is more urgent")
    run.add_argument("--deadline", type=float, metavar="S", help="end the task after S seconds")
    run.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds; ends the task unless --detach")
    run.add_argument("--owner", help="whom to account it to")
    run.add_argument("-d", "--detach", action="store_true", help="print the pid and leave it running")
    run.set_defaults(command=commands.run)

    ps = add("ps", parents=[listing], help="list processes")
    ps.add_argument("-a", "--all", action="store_true", help="also the connections of clients")
    ps.set_defaults(command=commands.ps)
    wait = add("wait", parents=[listing], help="wait for a process and print its result")
    wait.add_argument("pid", type=int)
    wait.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")
    wait.set_defaults(command=commands.wait)
    for name, text, command in (
        ("kill", "end processes and their children", commands.kill),
        ("suspend", "stop processes and take their generations off their slots", commands.suspend),
        ("resume", "let suspended processes go on", commands.resume),
    ):
        add(name, parents=[process], help=text).set_defaults(command=command)
    logs = add("logs", parents=[listing], help="print the log of a process")
    logs.add_argument("pid", type=int)
    logs.add_argument("-f", "--follow", action="store_true", help="go on with new lines until it ends")
    logs.set_defaults(command=commands.logs)
    for name, text, command in (
        ("slots", "show the slots of the models in use", commands.slots),
        ("models", "list the configured models", commands.models),
        ("programs", "list the programs that can be run", commands.programs),
        ("stats", "show counters of the daemon, and the machine", commands.stats),
        ("ping", "measure a round trip to the daemon", commands.ping),
    ):
        add(name, parents=[listing], help=text).set_defaults(command=command)
    shutdown = add("shutdown", parents=[common], help="stop the daemon after a drain")
    shutdown.add_argument("--now", action="store_true", help="do not wait for running tasks")
    shutdown.set_defaults(command=commands.shutdown)
    completion = add("completion", help="print a completion script for a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completion.set_defaults(command=commands.completion)
    return root
