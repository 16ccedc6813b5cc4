"""The commands of `llmos`: each takes a connected client and the parsed options, and returns an exit code.

Called by `llmosd.cli`. What a command prints on standard output is its result; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ipc.errors import BadArguments
from llmosd.cli import show
from llmosd.cli.stream import print_events
from llmosd.client import Client


def run(client: Client, options: argparse.Namespace) -> int:
    positional = [sys.stdin.read() if text == "-" else text for text in options.arguments]
    task = client.submit(
        program_path(options.program),
        dict(_named(argument) for argument in options.arg),
        positional=positional,
        lenient=True,
        priority=options.priority,
        deadline=options.deadline,
        owner=options.owner,
        detach=options.detach,
    )
    if options.detach:
        show.value({"pid": task.pid} if options.json else task.pid, options.json)
        return 0
    if options.json:
        show.value({"pid": task.pid, "result": task.result(options.timeout)}, as_json=True)
        return 0
    print_events(task, options.timeout)
    return 0


def ps(client: Client, options: argparse.Namespace) -> int:
    show.processes(client.ps(clients=options.all), options.json)
    return 0


def wait(client: Client, options: argparse.Namespace) -> int:
    show.value(client.wait(options.pid, options.timeout), options.json)
    return 0


def kill(client: Client, options: argparse.Namespace) -> int:
    for pid in options.pid:
        client.kill(pid)
    return 0


def suspend(client: Client, options: argparse.Namespace) -> int:
    for pid in options.pid:
        client.suspend(pid)
    return 0


def resume(client: Client, options: argparse.Namespace) -> int:
    for pid in options.pid:
        client.resume(pid)
    return 0


def logs(client: Client, options: argparse.Namespace) -> int:
    lines = client.follow(options.pid) if options.follow else iter(client.logs(options.pid))
    for line in lines:
        show.log_line(line, options.json)
    return 0


def slots(client: Client, options: argparse.Namespace) -> int:
    show.slots(client.slots(), options.json)
    return 0


def models(client: Client, options: argparse.Namespace) -> int:
    show.models(client.models(), options.json)
    return 0


def programs(client: Client, options: argparse.Namespace) -> int:
    show.programs(client.programs(), options.json)
    return 0


def stats(client: Client, options: argparse.Namespace) -> int:
    show.stats(client.stats(), options.json)
    return 0


def ping(client: Client, options: argparse.Namespace) -> int:
    start = time.perf_counter()
    client.ping()
    microseconds = (time.perf_counter() - start) * 1e6
    show.value({"microseconds": round(microseconds, 1)} if options.json else f"{microseconds:.0f} us", options.json)
    return 0


def shutdown(client: Client, options: argparse.Namespace) -> int:
    """Ask for it, and wait until the daemon has gone."""
    client.shutdown(now=options.now)
    client.wait_until_closed()
    return 0


def completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser, shell=options.shell))
    return 0


def program_path(program: str) -> str:
    """A path made absolute, since the daemon's working folder is not ours; a name as it is."""
    from pathlib import Path

    file, colon, name = program.partition(":")
    if "/" not in file and not file.endswith(".py"):
        return program
    return f"{Path(file).expanduser().resolve()}{colon}{name}"


def _named(argument: str) -> tuple[str, Any]:
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise BadArguments(f"-a takes NAME=VALUE, got {argument!r}")
    return name, text
