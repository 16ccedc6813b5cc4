"""The memory of all connections together: large frames take turns, slow clients are refused, the largest are cut."""

from __future__ import annotations

import asyncio
import random

import pytest

from ipc.errors import Busy, LlmosError, SlowReader, SlowWriter
from ipc.frames import MAX_FRAME
from kernel.core import traffic as bounds
from kernel.core.traffic import MIB, Traffic

LARGEST = MAX_FRAME + 4  # bytes of a frame with its header


class Peer:
    """A connection. Records what is done to it."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.held = False
        self.arrived = 4
        self.errors: list[LlmosError] = []
        self.left = 0

    def await_turn(self) -> None:
        self.held = True

    def take_turn(self) -> None:
        self.held = False

    def refuse(self, error: LlmosError) -> None:
        self.errors.append(error)
        self.traffic.connection_ended(self)

    cut = refuse

    def unread(self) -> int:
        return self.left

    def begin(self, size: int) -> None:
        self.traffic.frame_begun(self, size)

    def leave(self, size: int) -> None:
        self.left = size
        self.traffic.left_unread(self, size)


@pytest.fixture
async def traffic() -> Traffic:
    return Traffic(asyncio.get_running_loop())


def peers(traffic: Traffic, count: int) -> list[Peer]:
    return [Peer(traffic) for _ in range(count)]


def errors(some: list[Peer]) -> list[type]:
    return [type(error) for peer in some for error in peer.errors]


async def test_a_frame_that_is_not_complete_in_time_is_refused_and_its_size_is_free(traffic: Traffic) -> None:
    slow, late, quick = peers(traffic, 3)
    slow.begin(5 * MIB)
    quick.begin(100)
    await asyncio.sleep(bounds.FRAME_SECONDS - 5)
    late.begin(3 * MIB)
    quick.begin(0)
    await asyncio.sleep(6)
    (error,) = slow.errors
    assert isinstance(error, SlowWriter)
    assert error.data == {"size": 5 * MIB, "seconds": bounds.FRAME_SECONDS}
    assert (late.errors, quick.errors, traffic.large) == ([], [], 3 * MIB)
    late.begin(0)
    assert traffic.large == 0


async def test_a_frame_that_follows_another_has_a_time_of_its_own(traffic: Traffic) -> None:
    (peer,) = peers(traffic, 1)
    for _ in range(4):
        peer.begin(MIB)
        await asyncio.sleep(bounds.FRAME_SECONDS - 2)
    assert (peer.errors, traffic.large) == ([], MIB)


async def test_no_time_passes_for_a_client_that_the_daemon_does_not_read(traffic: Traffic) -> None:
    (peer,) = peers(traffic, 1)
    peer.begin(MIB)
    peer.held = True
    await asyncio.sleep(10 * bounds.FRAME_SECONDS)
    assert peer.errors == []


async def test_large_frames_take_turns_and_small_ones_pass(traffic: Traffic) -> None:
    large = peers(traffic, 10)
    for peer in large:
        peer.begin(LARGEST)
    assert [peer.held for peer in large] == [False] * 8 + [True] * 2
    assert traffic.large == bounds.MAX_LARGE
    (small,) = peers(traffic, 1)
    small.begin(1000)
    assert not small.held
    large[3].begin(0)
    await asyncio.sleep(0)
    assert [peer.held for peer in large] == [False] * 9 + [True]
    large[9].begin(0)  # the last one has gone
    large[8].begin(0)
    assert (traffic.large, traffic.small) == (7 * LARGEST, 1000)


async def test_while_a_frame_waits_one_goes_that_makes_no_progress(traffic: Traffic) -> None:
    slow = peers(traffic, 8)
    for peer in slow:
        peer.begin(LARGEST)
    (honest,) = peers(traffic, 1)
    honest.begin(LARGEST)
    for _ in range(bounds.IDLE_SECONDS + 1):
        slow[0].arrived += 1
        await asyncio.sleep(1)
    assert not honest.held
    assert errors(slow) == [SlowWriter]
    assert slow[1].errors


async def test_while_a_frame_waits_even_those_that_make_progress_have_less_time(traffic: Traffic) -> None:
    slow = peers(traffic, 8)
    for peer in slow:
        peer.begin(LARGEST)
    (honest,) = peers(traffic, 1)
    honest.begin(LARGEST)
    for _ in range(bounds.CONTENDED_SECONDS + 1):
        for peer in [*slow, honest]:
            peer.arrived += 1
        await asyncio.sleep(1)
    assert not honest.held
    assert errors([*slow, honest]) == [SlowWriter]


async def test_the_smallest_frame_that_waits_comes_first(traffic: Traffic) -> None:
    slow, waiting = peers(traffic, 8), peers(traffic, 20)
    for peer in [*slow, *waiting]:
        peer.begin(LARGEST)
    (honest,) = peers(traffic, 1)
    honest.begin(MIB)
    slow[0].begin(0)
    await asyncio.sleep(0)
    assert [peer for peer in [*waiting, honest] if not peer.held] == [honest]


async def test_frames_that_would_wait_in_too_long_a_line_are_refused(traffic: Traffic) -> None:
    crowd = peers(traffic, 8 + bounds.MAX_WAITING + 1)
    for peer in crowd:
        peer.begin(LARGEST)
    await asyncio.sleep(0)
    assert errors(crowd) == [Busy]
    assert crowd[-1].errors


async def test_even_small_frames_have_a_bound(traffic: Traffic) -> None:
    count = bounds.MAX_SMALL // bounds.SMALL_FRAME
    crowd = peers(traffic, count + 1)
    for peer in crowd:
        peer.begin(bounds.SMALL_FRAME)
    assert [peer.held for peer in crowd] == [False] * count + [True]


async def test_nothing_runs_when_no_frame_is_incomplete(traffic: Traffic) -> None:
    (peer,) = peers(traffic, 1)
    peer.begin(MIB)
    peer.begin(0)
    await asyncio.sleep(5)
    assert traffic._timer is None


async def test_the_client_with_the_most_unread_is_cut_when_all_have_too_much_for_long(traffic: Traffic) -> None:
    some = peers(traffic, 5)
    for number, peer in enumerate(some):
        peer.leave((48 + number) * MIB)
    (last,) = peers(traffic, 1)
    last.leave(20 * MIB)
    await asyncio.sleep(bounds.UNREAD_SECONDS - 1)
    assert errors([*some, last]) == []
    await asyncio.sleep(2)
    (error,) = some[4].errors
    assert isinstance(error, SlowReader)
    assert (error.data, traffic.unread) == ({"unread": 52 * MIB}, (48 + 49 + 50 + 51 + 20) * MIB)
    assert errors(some) == [SlowReader]


async def test_clients_that_read_their_large_answers_at_once_are_not_cut(traffic: Traffic) -> None:
    some = peers(traffic, 60)
    for _ in range(2 * bounds.UNREAD_SECONDS):
        for peer in some:
            peer.leave(16 * MIB)
        await asyncio.sleep(0.9)
        for peer in some:
            peer.leave(0)
        await asyncio.sleep(0.2)
    assert (errors(some), traffic.unread) == ([], 0)


async def test_a_burst_has_a_bound_that_holds_at_once(traffic: Traffic) -> None:
    some = peers(traffic, bounds.MAX_BURST // (32 * MIB))
    for peer in some:
        peer.leave(32 * MIB)
    (last,) = peers(traffic, 1)
    last.leave(33 * MIB)
    assert (errors(some), errors([last])) == ([], [SlowReader])


async def test_clients_that_have_read_since_then_are_not_cut(traffic: Traffic) -> None:
    some = peers(traffic, 6)
    for peer in some:
        peer.leave(50 * MIB)
    for peer in some:
        peer.left = MIB  # nobody notices, until somebody has too much
    await asyncio.sleep(2 * bounds.UNREAD_SECONDS)
    assert (errors(some), traffic.unread) == ([], 6 * MIB)
    some[0].leave(0)
    assert traffic.unread == 5 * MIB


async def test_all_sums_are_zero_when_all_connections_have_ended(traffic: Traffic) -> None:
    chance = random.Random(20261201)
    crowd = peers(traffic, 400)
    for _ in range(20_000):
        peer = chance.choice(crowd)
        if not peer.errors:
            match chance.randrange(4):
                case 0:
                    peer.begin(chance.choice((4, 1000, bounds.SMALL_FRAME, MIB, LARGEST)))
                case 1:
                    peer.begin(0)
                case 2:
                    peer.leave(chance.choice((MIB, 8 * MIB)))
                case 3:
                    peer.leave(0)
        if chance.random() < 0.01:
            await asyncio.sleep(chance.choice((0, 1, 5)))
    for peer in crowd:
        traffic.connection_ended(peer)
    await asyncio.sleep(5)
    assert (traffic.large, traffic.small, traffic.unread, traffic._timer) == (0, 0, 0, None)
    assert not traffic._arriving
    assert not traffic._waiting
    assert not traffic._unread
    assert not traffic._behind


async def test_requests_in_flight_have_a_bound_and_every_client_a_share(traffic: Traffic) -> None:
    traffic.in_flight = bounds.MAX_IN_FLIGHT
    traffic.check_request(0, 1000)
    traffic.check_request(bounds.FAIR_SHARE - 10, 10)
    with pytest.raises(Busy, match="unanswered requests of all connections"):
        traffic.check_request(bounds.FAIR_SHARE, 1)
