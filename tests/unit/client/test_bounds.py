"""Every call of both clients ends in time, whatever the daemon does: its own timeout, or else what the call needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import LlmosError, NoDaemon, TimedOut
from ipc.messages import Log, Token
from ipc.protocol import Abandon, Request, StreamEvent
from ipc.syscalls import Logs, Ping, Pong, Ps, Send, Submit, Submitted, Syscall
from llmosd import AsyncClient, Client
from llmosd.client import blocking, bounds
from tests.support.fake_daemon import FakeDaemon

pytestmark = pytest.mark.real_time

SHORT = 0.2  # seconds
HANG = 60  # seconds after which a test fails instead of hanging
BIG = "x" * 8_000_000  # more than a socket buffers

Use = Callable[[Any], Any]  # a use of a client, blocking or a coroutine


@pytest.fixture
def daemon(folder: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(folder / "s.sock")
    yield daemon
    daemon.close()


@pytest.fixture(params=[Client, AsyncClient])
def use(request: pytest.FixtureRequest, daemon: FakeDaemon) -> Callable[[Use], Awaitable[Any]]:
    """Connects a client of either class and uses it."""

    async def use(action: Use) -> Any:
        async with asyncio.timeout(HANG):
            if request.param is Client:
                return await asyncio.to_thread(use_blocking, daemon.path, action)
            async with AsyncClient(daemon.path) as client:
                return await action(client)

    return use


def use_blocking(path: Path, action: Use) -> Any:
    with Client(path) as client:
        return action(client)


async def test_a_run_that_is_not_answered_ends_with_the_timeout_and_gives_the_task_up(daemon, use) -> None:
    with pytest.raises(TimedOut, match=r"echo gave no result within 0\.2 s"):
        await use(lambda client: client.run("echo", {"value": 1}, timeout=SHORT))
    abandoned = await asyncio.to_thread(daemon.wait_for, Abandon)
    assert [request.id for request in daemon.of(Request)] == [abandoned.id]


async def test_the_timeout_of_a_run_covers_the_submission_and_the_wait_together(daemon, use) -> None:
    daemon.answers[Submit] = Submitted("a", 7)
    with pytest.raises(TimedOut, match=r"echo gave no result within 0\.2 s"):
        await use(lambda client: client.run("echo", timeout=SHORT))


async def test_a_stream_of_events_does_not_put_the_timeout_off(daemon, use) -> None:
    daemon.answers[Submit] = Submitted("a", 7)

    def talk(request: Request, send: Callable[[Any], None]) -> None:
        while True:  # until the client closes the connection
            send(StreamEvent(request.id, Token("word", 7, 1), 1))

    daemon.then = talk
    with pytest.raises(TimedOut):
        await use(lambda client: client.run("echo", timeout=SHORT))


async def test_calls_with_a_timeout_of_their_own_end_even_if_the_daemon_does_not_end_them(
    use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "GRACE", SHORT)
    for call in (
        lambda client: client.wait(7, SHORT),
        lambda client: client.receive(SHORT),
        lambda client: client.call(7, None, SHORT),
        lambda client: client.request(Ps(), SHORT),
        lambda client: client.request(Submit("echo"), timeout=SHORT),
    ):
        with pytest.raises(TimedOut, match=r"no answer to \w+ within 0\.2 s"):
            await use(call)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: client.ps(), "Ps"),
        (lambda client: client.submit("echo"), "Submit"),
        (lambda client: client.attach("a"), "Attach"),
        (lambda client: client.kill(7), "Kill"),
        (lambda client: client.history(), "History"),
        (lambda client: client.shutdown(), "Shutdown"),
    ],
)
async def test_a_call_without_a_timeout_ends_when_the_daemon_should_have_answered(
    use, call: Use, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "WORK_TIMEOUT", SHORT)
    monkeypatch.setattr(bounds, "SECONDS", dict.fromkeys(bounds.ANSWERED_AT_ONCE, SHORT))
    with pytest.raises(NoDaemon, match=rf"does not answer to {name} within 0\.2 s"):
        await use(call)


async def test_the_connection_serves_the_next_call_after_one_that_was_not_answered(daemon, use) -> None:
    def twice(client: Client) -> Any:
        with pytest.raises(TimedOut):
            client.request(Ps(), SHORT)
        return client.ping()

    async def twice_async(client: AsyncClient) -> Any:
        with pytest.raises(TimedOut):
            await client.request(Ps(), SHORT)
        return await client.ping()

    assert await use(lambda client: (twice if isinstance(client, Client) else twice_async)(client)) is None


async def test_a_second_connection_takes_the_place_of_the_first(daemon, use) -> None:
    def again(client: Client) -> Any:
        client.connect()  # the daemon serves one connection after another
        return client.ping()

    async def again_async(client: AsyncClient) -> Any:
        await client.connect()
        return await client.ping()

    assert await use(lambda client: (again if isinstance(client, Client) else again_async)(client)) is None


async def test_following_a_log_ends_if_the_log_does_not_come(use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bounds.SECONDS, Logs, SHORT)

    async def follow(client: AsyncClient) -> list[Log]:
        return [line async for line in client.follow(7)]

    with pytest.raises(NoDaemon):
        await use(lambda client: follow(client) if isinstance(client, AsyncClient) else list(client.follow(7)))


async def test_a_cancelled_submission_is_given_up(daemon) -> None:
    async with AsyncClient(daemon.path) as client:
        running = asyncio.create_task(client.run("echo", timeout=HANG))
        request = await asyncio.to_thread(daemon.wait_for, Request)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await asyncio.to_thread(daemon.wait_for, Abandon)).id == request.id


async def test_a_connection_that_is_not_welcomed_ends_with_the_time_of_the_client(folder: Path) -> None:
    silent = FakeDaemon(folder / "silent.sock", welcome=False)

    def connect() -> None:
        client = Client(silent.path)
        with client.expiring(SHORT, "no result"), client:
            raise AssertionError("connected")

    with pytest.raises(TimedOut, match=r"no result within 0\.2 s"):
        await asyncio.to_thread(connect)
    silent.close()


# ---- a socket that is full


def test_a_request_that_the_daemon_does_not_read_ends_in_time_and_the_connection_stays_usable(daemon) -> None:
    with Client(daemon.path) as client:
        daemon.reading.clear()
        for _ in range(2):  # the second finds the rest of the first
            with pytest.raises(TimedOut):
                client.request(Send(7, BIG), SHORT)
        assert len(client._unsent) <= 2
        daemon.reading.set()
        assert client.ping() is None
        sent = [type(message).__name__ for message in daemon.received[1:]]
        assert sent in (["Request", "Abandon", "Request"], ["Request", "Request", "Abandon", "Request"])


def test_a_client_reads_while_its_request_waits_for_room(daemon) -> None:
    """The daemon does not read from a client that leaves much unread, so both would wait for each other."""
    daemon.answers[Send] = 1
    daemon.answers[Ping] = Pong(None)

    def flood(request: Request, send: Callable[[Any], None]) -> None:
        if isinstance(request.call, Ping):
            for _ in range(8):
                send(StreamEvent(99, Token(BIG[:1_000_000], 7, 1), 1))

    daemon.then = flood
    with Client(daemon.path) as client:
        client.ping()
        assert client.send(7, BIG) == 1


# ---- the end of the daemon


def test_a_client_waits_for_the_end_of_the_daemon_as_long_as_it_answers(
    daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "PING_AFTER", 0.01)
    monkeypatch.setitem(bounds.SECONDS, Ping, SHORT)
    pings = []

    def count(request: Request, send: Callable[[Any], None]) -> None:
        pings.append(request.id)
        if len(pings) == 3:
            daemon.hang_up()

    daemon.then = count
    with Client(daemon.path) as client:
        client.wait_until_closed(HANG)
    assert len(pings) == 3
    daemon.answers.clear()
    with Client(daemon.path) as client, pytest.raises(NoDaemon, match="Ping"):
        client.wait_until_closed()
    with Client(daemon.path) as client, pytest.raises(TimedOut, match="did not close the connection"):
        client.wait_until_closed(0.05)


# ---- the bounds


def calls() -> set[type[Syscall]]:
    def below(kind: type[Syscall]) -> set[type[Syscall]]:
        return {kind} | {one for child in kind.__subclasses__() for one in below(child)}

    return {kind for kind in below(Syscall) - {Syscall} if kind.__module__.startswith("ipc.")}


def test_every_call_that_has_a_timeout_waits_for_nothing_else() -> None:
    timed = {kind for kind in calls() if "timeout" in kind.__struct_fields__}
    assert timed <= set(bounds.WAITING)
    assert not set(bounds.WAITING) & set(bounds.ANSWERED_AT_ONCE)


def test_a_bound_is_looked_at_once_more_after_its_end() -> None:
    bound = bounds.within(0, "nothing")
    assert bound.left() == 0.0
    with pytest.raises(TimedOut, match="nothing within 0 s"):
        bound.left()


def test_a_time_that_no_timer_takes_is_no_bound() -> None:
    assert bounds.within(1e300, "nothing").left() is None
    assert bounds.within(float("nan"), "nothing").left() is None
    assert bounds.within(None, "nothing").left() is None


@pytest.mark.parametrize("timeout", [-1, 0])
def test_a_timeout_of_nothing_ends_at_once(daemon, timeout: float) -> None:
    with Client(daemon.path) as client, pytest.raises(LlmosError):
        client.run("echo", timeout=timeout)


def test_of_two_times_the_earlier_counts(daemon) -> None:
    with Client(daemon.path) as client:
        before = time.monotonic()
        with pytest.raises(TimedOut, match="inner"), client.expiring(HANG, "outer"), client.expiring(SHORT, "inner"):
            client.request(Ps())
        with pytest.raises(TimedOut, match="outer"), client.expiring(SHORT, "outer"), client.expiring(HANG, "inner"):
            client.request(Ps())
        assert time.monotonic() - before < HANG
        client.check_time()
