"""The waiting receivers of a mailbox, beside the plain way to find the first one: to ask each in order of arrival."""

from __future__ import annotations

import random
from itertools import count
from typing import Any, cast

import pytest

from ipc.messages import Message
from kernel.core.fiber import Fiber
from kernel.core.receivers import WaitingReceivers, WokenReceivers
from kernel.core.selector import Selector


def failing(_: Message) -> bool:
    raise ValueError


def a_thread() -> Fiber:
    """The receivers only look at the identity of a thread."""
    return cast("Fiber", object())


def a_message(number: int, luck: random.Random) -> Message:
    return Message(
        id=number,
        type=luck.choice("ab"),
        sender=luck.randint(1, 2),
        recipient=1,
        priority=0,
        correlation=luck.randint(0, 2),
        deadline=None,
        body=number,
    )


def a_selector(luck: random.Random) -> Selector | None:
    chosen: dict[str, Any] = {}
    if luck.random() < 0.5:
        chosen["type"] = luck.choice("ab")
    if luck.random() < 0.5:
        chosen["sender"] = luck.randint(1, 2)
    if luck.random() < 0.5:
        chosen["correlation"] = luck.randint(0, 2)
    if luck.random() < 0.3:
        chosen["where"] = luck.choice([lambda message: message.id % 2 == 0, lambda _: False, failing])
    return Selector(**chosen) if chosen else None


@pytest.mark.parametrize("seed", range(20))
def test_the_first_receiver_is_the_one_that_asking_each_in_order_finds(seed: int) -> None:
    luck, numbers = random.Random(seed), count(1)
    receivers, plain = WaitingReceivers(), dict[Fiber, Selector | None]()
    for _ in range(300):
        event = luck.random()
        if event < 0.5:
            thread, selector = a_thread(), a_selector(luck)
            receivers.add(thread, selector)
            plain[thread] = selector
        elif event < 0.6 and plain:
            thread = luck.choice(list(plain))
            receivers.remove(thread)
            del plain[thread]
        else:
            message = a_message(next(numbers), luck)
            wanted = [one for one, want in plain.items() if want is None or want.may_match(message)]
            found = receivers.first_for(message)
            assert found is (wanted[0] if wanted else None)
            if found is not None and luck.random() < 0.8:
                receivers.remove(found)
                del plain[found]
        assert list(receivers) == list(plain)
        assert len(receivers) == len(plain)


def test_a_thread_that_does_not_wait_can_be_removed() -> None:
    receivers = WaitingReceivers()
    receivers.remove(a_thread())
    assert not receivers


def test_nothing_is_left_of_receivers_that_do_not_wait_any_more() -> None:
    luck, receivers = random.Random(1), WaitingReceivers()
    threads = [a_thread() for _ in range(100)]
    for thread in threads:
        receivers.add(thread, a_selector(luck))
    for thread in threads:
        receivers.remove(thread)
    assert {len(table) for table in (receivers._keys, receivers._queues, receivers._shapes)} == {0}


def test_a_woken_receiver_is_forgotten_with_its_message_or_returns_it() -> None:
    luck, woken = random.Random(1), WokenReceivers()
    first, second = a_thread(), a_thread()
    one, two = a_message(1, luck), a_message(2, luck)
    woken.add(first, one)
    woken.add(second, two)
    woken.forget(one)
    assert woken.pop(first) is None
    assert woken.pop(second) is two
    assert not woken
    assert not woken._threads
