"""The commands that show what processes use and run: models, slots, locks, regions, tools and programs.

Called by the command line. Only `policy` changes anything.
"""

from __future__ import annotations

import argparse
import sys

from ipc.syscalls import (
    LockInfo,
    Locks,
    ModelInfo,
    PolicyInfo,
    ProgramInfo,
    RegionInfo,
    Regions,
    ToolInfo,
    Tools,
)
from llmosd.cli import listings, values
from llmosd.cli.options import Add, CommonOptions
from llmosd.client.blocking import Client
from llmosd.printable import printable_line


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    for name, text, function in (
        ("locks", "list locks, semaphores, conditions, barriers and events, with holders and waiters", locks),
        ("regions", "list the regions of shared memory", regions),
        ("tools", "list the tools that agents can call", tools),
        ("slots", "show the slots of the models in use", slots),
        ("models", "list the configured models", models),
        ("programs", "list the programs that can be run", programs),
    ):
        add(name, parents=[common.table], help=text).set_defaults(command=function)

    command = add(
        "policy", parents=[common.table], help="show or change the policy that gives out the slots of a model"
    )
    command.add_argument("model", nargs="?", metavar="MODEL", help="the default model if left out")
    command.add_argument("kind", nargs="?", metavar="KIND", help="a policy such as fair; an unknown name lists all")
    command.add_argument("--quantum", type=int, metavar="N", help="tokens per turn on a slot while other calls wait")
    command.add_argument("--aging", type=float, metavar="N", help="priorities gained per second of waiting")
    command.add_argument(
        "--weight", action="append", default=[], metavar="OWNER=W", help="weight of an owner's share (repeatable)"
    )
    command.add_argument(
        "--starvation", type=float, metavar="N", help="put a call first after a wait of N times its service"
    )
    command.set_defaults(command=policy)


def locks(client: Client, options: argparse.Namespace) -> int:
    listings.rows(LockInfo, client.request(Locks()), options.json, options.wide)
    return 0


def regions(client: Client, options: argparse.Namespace) -> int:
    listings.rows(RegionInfo, client.request(Regions()), options.json, options.wide)
    return 0


def tools(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ToolInfo, client.request(Tools()), options.json, options.wide)
    return 0


def slots(client: Client, options: argparse.Namespace) -> int:
    listings.slots(client.slots(), options.json, options.wide)
    return 0


def models(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ModelInfo, client.models(), options.json, options.wide)
    return 0


def programs(client: Client, options: argparse.Namespace) -> int:
    rows = client.programs()
    listings.rows(ProgramInfo, rows, options.json, options.wide)
    for row in rows:
        if row.warning:
            text = f"warning: program {row.name} of {row.source}: {row.warning}"
            print(f"llmos: {printable_line(text)}", file=sys.stderr)
    return 0


def policy(client: Client, options: argparse.Namespace) -> int:
    info = client.policy(
        options.model,
        options.kind,
        quantum=options.quantum,
        aging=options.aging,
        weights=dict(values.weight(text) for text in options.weight),
        starvation=options.starvation,
    )
    listings.rows(PolicyInfo, [info], options.json, options.wide)
    return 0
