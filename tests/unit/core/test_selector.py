"""Selective receives against a list: by type, sender, correlation id and predicate, in order, cheap when deep."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages import Message
from kernel.core.mailbox import CONTROL, Mailbox
from kernel.core.message_queue import SPARSE, MessageQueue
from kernel.core.selector import Selector


def message(number: int, *, kind: str = "", sender: int = 1, priority: int = 0, correlation: int = 0) -> Message:
    return Message(number, kind, sender, 2, priority, correlation, None, number)


FIELDS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from("ab"),
        "sender": st.integers(1, 3),
        "priority": st.sampled_from([0, 0, 0, -1, 5, CONTROL]),
        "correlation": st.integers(0, 2),
    }
)


SELECTION = st.builds(
    Selector,
    type=st.none() | st.sampled_from("ab"),
    sender=st.none() | st.integers(1, 3),
    correlation=st.none() | st.integers(0, 2),
    where=st.none() | st.just(lambda message: message.id % 3 == 0),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(FIELDS, SELECTION, st.none()), max_size=120))
def test_a_mailbox_gives_what_a_sorted_list_would(steps: list[Any]) -> None:
    box, model = Mailbox(), []
    for number, step in enumerate(steps):
        if isinstance(step, dict):
            model.append(message(number, **step))
            box.put(model[-1])
            model.sort(key=lambda one: -one.priority)  # stable
        else:
            got = box.take() if step is None else box.select(step)
            wanted = next((one for one in model if step is None or step.matches(one)), None)
            assert got is wanted
            if wanted is not None:
                model.remove(wanted)
        assert list(box.peek()) == model
        assert box.count == len(model)
        assert box.taken == sum(one.priority != CONTROL for one in model)


def test_what_was_selected_leaves_nothing_behind_however_long_the_first_stays() -> None:
    box = Mailbox()
    box.put(message(0, kind="never asked for"))
    for number in range(1, 5000):
        box.put(message(number, kind="asked for", correlation=number))
        selected = box.select(Selector(correlation=number))
        assert selected is not None
        assert selected.id == number
    assert box.count == 1
    assert box._normal_queue is not None
    assert len(box._normal_queue.items) <= 2 * SPARSE + 2
    assert sum(map(len, (box._indexes or {}).values())) == 1


def test_an_emptied_mailbox_drops_its_indexes() -> None:
    box = Mailbox()
    box.put(message(1, correlation=4))
    assert box.select(Selector(correlation=4)) is not None
    assert box._indexes is None


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.data())
def test_a_lane_is_first_in_first_out_without_the_discarded(takes: list[bool], data: Any) -> None:
    queue, model = MessageQueue(), []
    for number, take in enumerate(takes):
        model.append(message(number))
        queue.items.append(model[-1])
        if take:
            victim = model.pop(data.draw(st.integers(0, len(model) - 1)))
            queue.discard(victim)
        elif data.draw(st.booleans()):
            assert queue.pop() is model.pop(0)
        assert list(queue) == model
        assert len(queue) == len(model)
