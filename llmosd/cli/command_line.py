"""The command line of `llmos`: its commands, and the messages and exit codes of errors.

Called by `llmosd.cli`. The files of `llmosd.cli.commands` define the commands; this module implements none. Exit
codes: 0 done, 1 the agent or the command failed, 2 wrong usage, 3 no daemon, 124 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence

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
from llmosd.cli import values
from llmosd.cli.commands import chat, control, daemon, messages, processes, resources, simulation, tasks
from llmosd.cli.options import CommonOptions
from llmosd.client.blocking import Client
from llmosd.standard_streams import FAILED, guard

USAGE, NO_DAEMON, TIMED_OUT = 2, 3, 124


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return guard("llmos", lambda: _run(given))


def _run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    command: Callable[..., int] = options.command
    try:
        if getattr(options, "needs_no_daemon", False):
            return command(options)
        with Client(options.socket, name="llmos") as client:
            return command(client, options)
    except (NoDaemon, ConnectionLost, SocketPathInvalid) as error:
        return _complain(error, NO_DAEMON)
    except TimedOut as error:
        return _complain(error, TIMED_OUT)
    except (InvalidCall, InvalidPolicy, NotFound) as error:
        return _complain(error, USAGE)
    except NotEncodable as error:
        if (wrong := values.not_text(arguments)) is None:
            return _complain(error, FAILED)
        return _complain(InvalidCall(f"the argument {wrong} is not UTF-8 text"), USAGE)
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
    root = argparse.ArgumentParser(prog="llmos", description="Run, watch and control agents of an llmosd daemon.")
    root.add_argument("--socket", metavar="PATH", help="the daemon's Unix socket")
    add = root.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser
    common = CommonOptions()
    for subject in (tasks, chat, processes, control, messages, resources, daemon, simulation):
        subject.add_commands(add, common)
    root.set_defaults(parser=root)  # for `completion`
    return root
