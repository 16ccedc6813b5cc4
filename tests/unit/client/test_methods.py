"""The methods of both clients: the same calls, with the same parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from ipc.errors import ConnectionLost
from ipc.syscalls import Ping, Submitted
from llmosd import AsyncClient, Client, Task
from llmosd.client.asynchronous import AsyncTask
from llmosd.client.session import PendingRequest


def methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_calls_with_the_same_parameters():
    blocking, asynchronous = methods(Client), methods(AsyncClient)
    assert set(blocking) - set(asynchronous) == {"wait_until_closed", "expiring", "check_time"}
    assert set(asynchronous) - set(blocking) == {"shared"}
    for name in (set(blocking) & set(asynchronous)) - {"request"}:
        assert inspect.signature(blocking[name]).parameters == inspect.signature(asynchronous[name]).parameters, name
        assert blocking[name].__doc__, name


def test_the_calls_of_the_asynchronous_client_are_coroutine_functions_and_those_of_the_blocking_one_are_not():
    for name in ("submit", "attach", "ps", "ping", "wait", "kill"):
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
        assert inspect.iscoroutinefunction(getattr(AsyncClient("/x"), name))
        assert not inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_task_is_cancelled_only_by_the_connection_that_found_it_and_while_it_has_a_process(kind: type) -> None:
    """In another run of the daemon its pid may belong to any process."""
    client, killed = kind("/x"), []

    async def kill(pid: int) -> None:
        killed.append(pid)

    client.kill = kill if kind is AsyncClient else killed.append

    async def cancelled(submitted: Submitted, lost: bool = False) -> None:
        pending = PendingRequest(1, Ping(), streams=True)
        if lost:
            pending.lose(ConnectionLost("gone"))
        task = AsyncTask(client, None, pending, submitted) if kind is AsyncClient else Task(client, pending, submitted)
        if (done := task.cancel()) is not None:
            await done

    await cancelled(Submitted("a", 0))
    assert killed == []
    await cancelled(Submitted("a", 7))
    assert killed == [7]
    with pytest.raises(ConnectionLost):
        await cancelled(Submitted("a", 8), lost=True)
    assert killed == [7]
