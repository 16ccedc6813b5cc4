"""A process is named by its number or by its registered name, and one of its threads by its path after a colon."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, cast

import pytest

from ipc.errors import UnknownName
from ipc.syscalls import NameInfo, Names
from llmosd.cli import targets
from llmosd.client.blocking import Client

NAMES = {"doubler": 12, "office:1": 13, "a 5": 14, "door:side": 15}


class Registry:
    """A client of a daemon that has only registered names."""

    def __init__(self) -> None:
        self.requests = 0

    def request(self, call: Names) -> list[NameInfo]:
        assert isinstance(call, Names)
        self.requests += 1
        return [NameInfo(name, pid, "some") for name, pid in NAMES.items()]


def resolved(**options: Any) -> tuple[Namespace, int]:
    """The options after names are replaced, and the number of requests that it took."""
    registry, given = Registry(), Namespace(**options)
    targets.resolve(cast("Client", registry), given)
    return given, registry.requests


@pytest.mark.parametrize(
    ("text", "pid", "thread"),
    [
        ("7", 7, None),
        ("7:0-1", 7, "0-1"),
        ("doubler", 12, None),
        ("doubler:0", 12, "0"),
        ("doubler:0-1-2", 12, "0-1-2"),
        ("office:1", 13, None),
        ("office:1:0", 13, "0"),
        ("a 5", 14, None),
        ("door:side", 15, None),
        ("door:side:0-1", 15, "0-1"),
    ],
)
def test_a_target_is_a_process_or_one_of_its_threads(text: str, pid: int, thread: str | None) -> None:
    assert resolved(target=[targets.target(text)])[0].target == [(pid, thread)]
    assert resolved(target=targets.target(text))[0].target == (pid, thread)


def test_a_process_is_a_number_or_a_name() -> None:
    assert resolved(pid=targets.process("7"))[0].pid == 7
    assert resolved(pid=targets.process("doubler"))[0].pid == 12
    assert resolved(pid=None)[0].pid is None


def test_the_names_are_asked_for_at_most_once_and_only_if_needed() -> None:
    given, requests = resolved(target=[targets.target(text) for text in ("7", "doubler", "office:1")])
    assert (given.target, requests) == ([(7, None), (12, None), (13, None)], 1)
    assert resolved(target=[(7, None)], pid=7)[1] == 0
    assert resolved(json=True)[1] == 0


@pytest.mark.parametrize("text", ["doublr", "doublr:0", "office", "-3", "", "٣٤x"])
def test_an_unknown_name_is_an_error(text: str) -> None:
    with pytest.raises(UnknownName):
        resolved(target=[targets.target(text)])
    with pytest.raises(UnknownName, match="no process is registered as"):
        resolved(pid=targets.process(text))


def test_an_unknown_name_leads_to_a_similar_one() -> None:
    with pytest.raises(UnknownName, match="'doublr'; did you mean doubler\\? `llmos names` lists the names"):
        resolved(pid="doublr")
    client = cast("Client", Registry())
    with pytest.raises(UnknownName, match="did you mean doubler"), targets.suggesting(client, "doublr"):
        raise UnknownName("no process is registered as 'doublr'", name="doublr")


def test_an_error_of_the_recipient_is_not_changed() -> None:
    client = cast("Client", Registry())
    for to in (12, "doubler"):
        with pytest.raises(UnknownName, match="its own mistake"), targets.suggesting(client, to):
            raise UnknownName("its own mistake", name="doublr")
