"""The commands of `llmos`: each takes a connected client and the parsed options, and returns an exit code.

Called by `llmosd.cli.command_line`. A command writes only its result to standard output; everything else goes to
standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator

from ipc.errors import MissingExtra, UnknownProcess
from ipc.messages import Event
from ipc.syscalls import (
    Crashes,
    CrashReport,
    DeadLetter,
    DeadLetters,
    Heading,
    Kill,
    LockInfo,
    Locks,
    ModelInfo,
    NameInfo,
    Names,
    Nice,
    PeekMailbox,
    PolicyInfo,
    ProcessInfo,
    ProgramInfo,
    RegionInfo,
    Regions,
    Resume,
    Suspend,
    TaskInfo,
    ThreadInfo,
    Threads,
    ToolInfo,
    Tools,
)
from llmosd.cli import following, listings, show, values
from llmosd.cli.stream import print_events
from llmosd.client import cursor
from llmosd.client.blocking import Client, Task

BEGINNING = (0, 0)  # the first event of a task that the daemon still retains
PAGE = 10_000  # rows of the process table per request


def run(client: Client, options: argparse.Namespace) -> int:
    positional = [sys.stdin.read() if text == "-" else text for text in options.arguments]
    task = client.submit(
        values.program_path(options.program),
        dict(values.named_argument(argument) for argument in options.arg),
        positional=positional,
        lenient=True,
        priority=options.priority,
        deadline=options.deadline,
        owner=options.owner,
        detach=options.detach,
        name=options.name,
        limits=values.limits(options.limit),
        key=options.key,
        durable=options.durable,
    )
    if options.detach:
        show.value({"pid": task.pid, "id": task.id} if options.json else task.pid, options.json)
        if not options.json:
            print(f"llmos: task {task.id}: `llmos attach {task.id}` shows its output", file=sys.stderr)
        return 0
    return _show(task, options, following.attached(task, options.timeout))


def attach(client: Client, options: argparse.Namespace) -> int:
    task = client.attach(options.id, after=BEGINNING)
    return _show(task, options, following.events(client, task, options.timeout))


def _show(task: Task, options: argparse.Namespace, events: Iterable[Event]) -> int:
    if options.json:
        last = deque(events, maxlen=1).pop()
        show.value({"pid": task.pid, "id": task.id, "result": cursor.final_value(last)}, as_json=True)
    else:
        print_events(events)
    return 0


def history(client: Client, options: argparse.Namespace) -> int:
    rows = client.history(options.limit, before=options.before)
    listings.rows(TaskInfo, rows, options.json)
    if len(rows) == options.limit:
        print(f"llmos: there may be more: --before {rows[-1].id}", file=sys.stderr)
    return 0


def backup(client: Client, options: argparse.Namespace) -> int:
    size = client.backup(options.file)
    text = f"{options.file}: {show.size(size)}"
    show.value({"file": str(options.file), "size": size} if options.json else text, options.json)
    return 0


def ps(client: Client, options: argparse.Namespace) -> int:
    if options.tree:
        return tree(client, options)
    rows = client.ps(clients=options.all, start=options.start, limit=options.limit)
    listings.rows(ProcessInfo, rows, options.json)
    if len(rows) == options.limit:
        print(f"llmos: there may be more: --start {rows[-1].pid + 1}", file=sys.stderr)
    return 0


def tree(client: Client, options: argparse.Namespace) -> int:
    rows = list(all_processes(client, clients=options.all))
    if options.json:
        listings.rows(ProcessInfo, rows, as_json=True)
        return 0
    root = getattr(options, "pid", None)
    if root is not None and all(row.pid != root for row in rows):
        raise UnknownProcess(f"no living process {root}; `llmos ps` lists them", pid=root)
    listings.tree(rows, root)
    return 0


def all_processes(client: Client, *, clients: bool) -> Iterator[ProcessInfo]:
    """Every row of the process table, page by page."""
    start = 0
    while rows := client.ps(clients=clients, start=start, limit=PAGE):
        yield from rows
        start = rows[-1].pid + 1


def wait(client: Client, options: argparse.Namespace) -> int:
    show.value(client.wait(options.pid, options.timeout), options.json)
    return 0


def kill(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Kill(pid, thread))
    return 0


def suspend(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Suspend(pid, thread))
    return 0


def resume(client: Client, options: argparse.Namespace) -> int:
    for pid, thread in options.target:
        client.request(Resume(pid, thread))
    return 0


def nice(client: Client, options: argparse.Namespace) -> int:
    pid, thread = options.target
    priority, relative = options.priority
    show.value(client.request(Nice(pid, priority, relative or options.relative, thread)), options.json)
    return 0


def send(client: Client, options: argparse.Namespace) -> int:
    number = client.send(
        options.to,
        values.body(options.body),
        type=options.type,
        priority=options.priority,
        wait=not options.no_wait,
        lifetime=options.lifetime,
    )
    if options.json:
        show.value({"id": number}, as_json=True)
    return 0


def call(client: Client, options: argparse.Namespace) -> int:
    answer = client.call(
        options.to, values.body(options.body), options.timeout, type=options.type, priority=options.priority
    )
    show.value(answer, options.json)
    return 0


def mailbox(client: Client, options: argparse.Namespace) -> int:
    listings.rows(Heading, client.request(PeekMailbox(options.pid, options.limit)), options.json)
    return 0


def crashes(client: Client, options: argparse.Namespace) -> int:
    reports: list[CrashReport] = client.request(Crashes(options.pid))
    if options.pid is None or options.json:
        listings.rows(CrashReport, reports, options.json)
    else:
        for report in reports:
            listings.crash(report)
    return 0


def threads(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ThreadInfo, client.request(Threads(options.pid)), options.json)
    return 0


def deadletters(client: Client, options: argparse.Namespace) -> int:
    listings.rows(DeadLetter, client.request(DeadLetters()), options.json)
    return 0


def locks(client: Client, options: argparse.Namespace) -> int:
    listings.rows(LockInfo, client.request(Locks()), options.json)
    return 0


def names(client: Client, options: argparse.Namespace) -> int:
    listings.rows(NameInfo, client.request(Names()), options.json)
    return 0


def regions(client: Client, options: argparse.Namespace) -> int:
    listings.rows(RegionInfo, client.request(Regions()), options.json)
    return 0


def tools(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ToolInfo, client.request(Tools()), options.json)
    return 0


def top(client: Client, options: argparse.Namespace) -> int:
    """Show the processes in full screen, over a separate connection. Raises `MissingExtra` without textual."""
    import importlib.util

    if importlib.util.find_spec("textual") is None:
        raise MissingExtra(
            "`llmos top` needs textual: pip install 'llmosd[top]', or use `llmos ps` for a single listing", extra="top"
        )
    from llmosd.cli.top import Top

    screen = Top(client.socket)
    screen.run()
    return screen.return_code or 0


def logs(client: Client, options: argparse.Namespace) -> int:
    lines = client.follow(options.pid) if options.follow else iter(client.logs(options.pid))
    for line in lines:
        show.log_line(line, options.json)
    return 0


def slots(client: Client, options: argparse.Namespace) -> int:
    listings.slots(client.slots(), options.json)
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
    listings.rows(PolicyInfo, [info], options.json)
    return 0


def models(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ModelInfo, client.models(), options.json)
    return 0


def programs(client: Client, options: argparse.Namespace) -> int:
    listings.rows(ProgramInfo, client.programs(), options.json)
    return 0


def stats(client: Client, options: argparse.Namespace) -> int:
    listings.stats(client.stats(), options.json)
    return 0


def ping(client: Client, options: argparse.Namespace) -> int:
    start = time.perf_counter()
    client.ping()
    microseconds = (time.perf_counter() - start) * 1e6
    show.value({"microseconds": round(microseconds, 1)} if options.json else f"{microseconds:.0f} us", options.json)
    return 0


def shutdown(client: Client, options: argparse.Namespace) -> int:
    """Stop the daemon, and wait until it has closed the connection."""
    client.shutdown(now=options.now)
    client.wait_until_closed()
    return 0


def completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser, shell=options.shell))
    return 0
