"""Finds the processes that a command names: a process is given by its number or by its registered name.

`kill` and `why` also take the id of a task, which may have no process. Used for every command about processes, before
it runs, so that the commands see only numbers. A name stands for the process that has it when the command begins.
`llmos send` and `llmos call` pass a name on to the daemon, which finds the recipient when it delivers the message. This
module never makes a call that changes anything.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ipc.errors import UnknownName
from ipc.syscalls import NameInfo, Names
from llmosd.client.blocking import Client

Target = tuple[int, str | None]  # a process, and the path of one of its threads
TASK = re.compile(r"[0-9a-f]{15,16}")  # the id of a task; no pid is as long


class TaskId(NamedTuple):
    """A task, given by its id."""

    id: str


def process(text: str) -> int | str:
    """Parse a process: its number, or else its name."""
    return int(text) if text.isdecimal() else text


def target(text: str) -> Target | str:
    """Parse a process or one of its threads, such as 12 or 12:0-1; a text with a name is left as it is."""
    pid, colon, thread = text.partition(":")
    return (int(pid), thread if colon else None) if pid.isdecimal() else text


def process_or_task(text: str) -> int | str | TaskId:
    """Parse a process, or the id of a task."""
    return TaskId(text) if TASK.fullmatch(text) else process(text)


def target_or_task(text: str) -> Target | str | TaskId:
    """Parse a process, one of its threads, or the id of a task."""
    return TaskId(text) if TASK.fullmatch(text) else target(text)


def resolve(client: Client, options: argparse.Namespace) -> None:
    """Replace the names among the options `pid` and `target` by numbers. Raises `UnknownName`."""
    pid, given = getattr(options, "pid", None), getattr(options, "target", None)
    targets = given if isinstance(given, list) else [given]
    if not isinstance(pid, str) and not any(isinstance(one, str) for one in targets):
        return
    names = _names(client)
    if isinstance(pid, str):
        options.pid = _pid(pid, names)
    found = [_target(one, names) if isinstance(one, str) else one for one in targets]
    if given is not None:
        options.target = found if isinstance(given, list) else found[0]


@contextmanager
def suggesting(client: Client, to: int | str) -> Iterator[None]:
    """Let the error of a message to an unknown name suggest a similar name."""
    try:
        yield
    except UnknownName as error:
        if not isinstance(to, str) or error.data.get("name") != to:
            raise  # the recipient made a mistake, not the sender
        raise _unknown(to, _names(client)) from None


def _names(client: Client) -> dict[str, int]:
    registered: list[NameInfo] = client.request(Names())
    return {entry.name: entry.pid for entry in registered}


def _target(text: str, names: Mapping[str, int]) -> Target:
    """A name, or a name with the path of a thread. A name may contain a colon, so the whole text is tried first."""
    if text in names:
        return names[text], None
    name, colon, thread = text.rpartition(":")
    if colon and re.fullmatch(r"\d+(-\d+)*", thread):
        return _pid(name, names), thread
    return _pid(text, names), None


def _pid(name: str, names: Mapping[str, int]) -> int:
    if name not in names:
        raise _unknown(name, names)
    return names[name]


def _unknown(name: str, names: Mapping[str, int]) -> UnknownName:
    from kernel.programs.suggestion import did_you_mean, similar

    hint = did_you_mean(similar(name, names))
    return UnknownName(f"no process is registered as {name!r}; {hint}`llmos names` lists the names", name=name)
