"""The commands for the daemon itself: `stats`, `ping`, `backup`, `shutdown` and `completion`.

Called by the command line. `completion` never contacts a daemon.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmosd.cli import listings, show, values
from llmosd.cli.options import Add, CommonOptions
from llmosd.client.blocking import Client


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("stats", parents=[common.table], help="show counters of the daemon and the load of the machine")
    command.set_defaults(command=stats)

    command = add("ping", parents=[common.listing], help="measure a round trip to the daemon")
    command.set_defaults(command=ping)

    command = add("backup", parents=[common.listing], help="copy the journal of the running daemon to a new file")
    command.add_argument("file", type=Path, help="the new file; a daemon can use it as STATE/journal.sqlite")
    command.set_defaults(command=backup)

    command = add("shutdown", parents=[common.daemon], help="stop the daemon after a drain")
    command.add_argument("--now", action="store_true", help="do not wait for running tasks")
    command.set_defaults(command=shutdown)

    command = add("completion", help="print a completion script for a shell")
    command.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"])
    command.set_defaults(command=completion, needs_no_daemon=True)


def stats(client: Client, options: argparse.Namespace) -> int:
    listings.stats(client.stats(), options.json, options.wide)
    return 0


def ping(client: Client, options: argparse.Namespace) -> int:
    start = time.perf_counter()
    client.ping()
    microseconds = (time.perf_counter() - start) * 1e6
    show.value({"microseconds": round(microseconds, 1)} if options.json else f"{microseconds:.0f} us", options.json)
    return 0


def backup(client: Client, options: argparse.Namespace) -> int:
    size = client.backup(values.absolute_path(str(options.file)))
    text = f"{options.file}: {show.size(size)}"
    show.value({"file": str(options.file), "size": size} if options.json else text, options.json)
    return 0


def shutdown(client: Client, options: argparse.Namespace) -> int:
    """Stop the daemon, and wait until it has closed the connection."""
    client.shutdown(now=options.now)
    client.wait_until_closed()
    return 0


def completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(options.parser, shell=options.shell))
    return 0
