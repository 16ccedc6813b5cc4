"""The command line of `llmos`: its options, and the messages and exit codes of errors.

Called by the console script. Each command is one function of `llmosd.cli.commands` or `llmosd.cli.simulation`; this
module implements no command itself. Exit codes: 0 done, 1 the agent or the command failed, 2 wrong usage, 3 no daemon,
124 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
from llmosd.cli import commands, simulation, values
from llmosd.client.blocking import Client

DONE, FAILED, USAGE, NO_DAEMON, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 124, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
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
    if command is commands.completion:
        return command(parser(), options)
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
    one = argparse.ArgumentParser(add_help=False, parents=[listing])
    one.add_argument("pid", type=int, help="the number of a process, as in `llmos ps`")
    several = argparse.ArgumentParser(add_help=False, parents=[common])
    several.add_argument(
        "target",
        type=values.target,
        metavar="PID[:THREAD]",
        nargs="+",
        help="processes of `llmos ps`, or threads of `llmos threads`",
    )
    message = argparse.ArgumentParser(add_help=False, parents=[listing])
    message.add_argument("to", type=values.recipient, help="the number or the registered name of a process")
    message.add_argument("body", nargs="?", help="the body: JSON, or else plain text; - reads standard input")
    message.add_argument("--type", default="", help="the type of the message")
    message.add_argument("--priority", type=int, default=0, help="-20 to 20, higher is more urgent")

    root = argparse.ArgumentParser(prog="llmos", description="Run, watch and control agents of an llmosd daemon.")
    root.add_argument("--socket", metavar="PATH", help="the daemon's Unix socket")
    add = root.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser

    run = add("run", parents=[listing], help="run a program and print its result")
    run.add_argument("program", help="a program of `llmos programs`, or the path of a Python file")
    run.add_argument("arguments", nargs="*", default=[], help="its arguments in order; - reads standard input")
    run.add_argument("-a", "--arg", metavar="NAME=VALUE", action="append", default=[], help="an argument by name")
    run.add_argument("--priority", type=int, help="-20 to 20, higher is more urgent")
    run.add_argument("--deadline", type=float, metavar="S", help="end the task after S seconds")
    run.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds, then end the task")
    run.add_argument("--owner", help="the owner whose limits and share apply")
    run.add_argument("--name", help="register the process under this name")
    run.add_argument(
        "--limit",
        metavar="NAME=N",
        action="append",
        default=[],
        help="limit the usage of the process: tokens=1000, children=5, ... (repeatable)",
    )
    run.add_argument("-d", "--detach", action="store_true", help="print the pid and leave the task running")
    run.add_argument("--key", help="repeating a submission with the same key makes no second task")
    run.add_argument("--durable", action="store_true", help="run as a durable agent, which survives the daemon")
    run.set_defaults(command=commands.run)

    attach = add("attach", parents=[listing], help="print the output and the result of a submitted task")
    attach.add_argument("id", help="the id of a task, as in `llmos history`")
    attach.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds; the task continues")
    attach.set_defaults(command=commands.attach)
    history = add("history", parents=[listing], help="list submitted tasks, newest first")
    history.add_argument("--limit", type=int, metavar="N", default=100, help="at most N rows")
    history.add_argument("--before", metavar="ID", help="only tasks submitted before this one")
    history.set_defaults(command=commands.history)

    backup = add("backup", parents=[listing], help="copy the journal of the running daemon to a new file")
    backup.add_argument("file", type=Path, help="the new file; a daemon can use it as STATE/journal.sqlite")
    backup.set_defaults(command=commands.backup)

    ps = add("ps", parents=[listing], help="list processes")
    ps.add_argument("-a", "--all", action="store_true", help="also list the connections of clients")
    ps.add_argument("--tree", action="store_true", help="children under their parents")
    ps.add_argument("--limit", type=int, metavar="N", default=10_000, help="at most N rows")
    ps.add_argument("--start", type=int, metavar="PID", default=0, help="only processes from this number on")
    ps.set_defaults(command=commands.ps)
    tree = add("tree", parents=[listing], help="draw processes under their parents")
    tree.add_argument("pid", type=int, nargs="?", help="only this process and its descendants")
    tree.add_argument("-a", "--all", action="store_true", help="also list the connections of clients")
    tree.set_defaults(command=commands.tree)
    top = add("top", parents=[common], help="watch and control processes, live")
    top.set_defaults(command=commands.top)
    wait = add("wait", parents=[one], help="wait for a process and print its result")
    wait.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")
    wait.set_defaults(command=commands.wait)
    for name, text, command in (
        ("kill", "end processes and their children", commands.kill),
        ("suspend", "stop processes and take their generations off their slots", commands.suspend),
        ("resume", "let suspended processes continue", commands.resume),
    ):
        add(name, parents=[several], help=text).set_defaults(command=command)
    nice = add("nice", parents=[listing], help="change the priority of a process")
    nice.add_argument("target", type=values.target, metavar="PID[:THREAD]")
    nice.add_argument(
        "priority",
        type=values.priority,
        help="-20 to 20, higher is more urgent; +5 adds 5 to the current priority",
    )
    nice.add_argument(
        "-r", "--relative", action="store_true", help="add to the current priority, even without a plus sign"
    )
    nice.set_defaults(command=commands.nice)
    send = add("send", parents=[message], help="send a message to a process")
    send.add_argument("--no-wait", action="store_true", help="fail instead of waiting if the mailbox is full")
    send.add_argument(
        "--lifetime", type=float, metavar="S", help="drop the message if it is not received within S seconds"
    )
    send.set_defaults(command=commands.send)
    call = add("call", parents=[message], help="send a message to a process and print its reply")
    call.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")
    call.set_defaults(command=commands.call)
    mailbox = add("mailbox", parents=[one], help="list the messages in the mailbox of a process")
    mailbox.add_argument("--limit", type=int, metavar="N", default=100, help="at most N of them")
    mailbox.set_defaults(command=commands.mailbox)
    add("threads", parents=[one], help="list the threads of a process").set_defaults(command=commands.threads)
    crashes = add("crashes", parents=[listing], help="list failed processes, or show one failure in full")
    crashes.add_argument("pid", type=int, nargs="?")
    crashes.set_defaults(command=commands.crashes)
    logs = add("logs", parents=[one], help="print the log of a process")
    logs.add_argument("-f", "--follow", action="store_true", help="print new lines until the process ends")
    logs.set_defaults(command=commands.logs)
    for name, text, command in (
        ("deadletters", "list the last messages that no process received", commands.deadletters),
        ("names", "list the registered names", commands.names),
        ("locks", "list locks, semaphores, conditions, barriers and events, with holders and waiters", commands.locks),
        ("regions", "list the regions of shared memory", commands.regions),
        ("tools", "list the tools that agents can call", commands.tools),
        ("slots", "show the slots of the models in use", commands.slots),
        ("models", "list the configured models", commands.models),
        ("programs", "list the programs that can be run", commands.programs),
        ("stats", "show counters of the daemon and the load of the machine", commands.stats),
        ("ping", "measure a round trip to the daemon", commands.ping),
    ):
        add(name, parents=[listing], help=text).set_defaults(command=command)
    simulation.add_commands(add, common)
    policy = add("policy", parents=[listing], help="show or change the policy that gives out the slots of a model")
    policy.add_argument("model", nargs="?", metavar="MODEL", help="the default model if left out")
    policy.add_argument("kind", nargs="?", metavar="KIND", help="a policy such as fair; an unknown name lists all")
    policy.add_argument("--quantum", type=int, metavar="N", help="tokens per turn on a slot while other calls wait")
    policy.add_argument("--aging", type=float, metavar="N", help="priorities gained per second of waiting")
    policy.add_argument(
        "--weight", action="append", default=[], metavar="OWNER=W", help="weight of an owner's share (repeatable)"
    )
    policy.add_argument(
        "--starvation", type=float, metavar="N", help="put a call first after a wait of N times its service"
    )
    policy.set_defaults(command=commands.policy)
    shutdown = add("shutdown", parents=[common], help="stop the daemon after a drain")
    shutdown.add_argument("--now", action="store_true", help="do not wait for running tasks")
    shutdown.set_defaults(command=commands.shutdown)
    completion = add("completion", help="print a completion script for a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completion.set_defaults(command=commands.completion)
    return root
