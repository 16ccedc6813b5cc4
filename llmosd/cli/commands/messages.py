"""The commands for messages: `send`, `call`, `mailbox`, `deadletters` and `names`.

Called by the command line.
"""

from __future__ import annotations

import argparse

from ipc.syscalls import DeadLetter, DeadLetters, Heading, NameInfo, Names, PeekMailbox
from llmosd.cli import arguments, listings, show, targets
from llmosd.cli.options import PROCESS, Add, CommonOptions, add_timeout
from llmosd.client.blocking import Client

BODY = "the body: JSON, or else plain text; @FILE for the content of a file, - for standard input"


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    message = argparse.ArgumentParser(add_help=False, parents=[common.listing])
    message.add_argument("to", type=targets.process, help=PROCESS)
    message.add_argument("body", nargs="?", help=BODY)
    message.add_argument("--type", default="", help="the type of the message")
    message.add_argument("--priority", type=int, default=0, help="-20 to 20, higher is more urgent")

    command = add("send", parents=[message], help="send a message to a process")
    command.add_argument("--no-wait", action="store_true", help="fail instead of waiting if the mailbox is full")
    command.add_argument(
        "--lifetime", type=float, metavar="S", help="drop the message if it is not received within S seconds"
    )
    command.set_defaults(command=send)

    command = add("call", parents=[message], help="send a message to a process and print its reply")
    add_timeout(command, "wait at most S seconds", "no reply within {} s")
    command.set_defaults(command=call)

    command = add(
        "mailbox", parents=[common.process, common.wide], help="list the messages in the mailbox of a process"
    )
    command.add_argument("--limit", type=int, metavar="N", default=100, help="at most N of them")
    command.set_defaults(command=mailbox)

    command = add("deadletters", parents=[common.table], help="list the last messages that no process received")
    command.set_defaults(command=deadletters)

    command = add("names", parents=[common.table], help="list the registered names")
    command.set_defaults(command=names)


def send(client: Client, options: argparse.Namespace) -> int:
    body = arguments.body(options.body)
    with targets.suggesting(client, options.to):
        number = client.send(
            options.to,
            body,
            type=options.type,
            priority=options.priority,
            wait=not options.no_wait,
            lifetime=options.lifetime,
        )
    if options.json:
        show.value({"id": number}, as_json=True)
    return 0


def call(client: Client, options: argparse.Namespace) -> int:
    body = arguments.body(options.body)
    with targets.suggesting(client, options.to):
        answer = client.call(options.to, body, options.timeout, type=options.type, priority=options.priority)
    show.result(answer, options.json)
    return 0


def mailbox(client: Client, options: argparse.Namespace) -> int:
    listings.rows(Heading, client.request(PeekMailbox(options.pid, options.limit)), options.json, options.wide)
    return 0


def deadletters(client: Client, options: argparse.Namespace) -> int:
    listings.rows(DeadLetter, client.request(DeadLetters()), options.json, options.wide)
    return 0


def names(client: Client, options: argparse.Namespace) -> int:
    listings.rows(NameInfo, client.request(Names()), options.json, options.wide)
    return 0
