"""The tokens of model calls that run at the same time are printed one call after the other."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from llmosd.cli.call_order import EVENTS, MOST_HELD, SECONDS, CallOrder, ModelCall


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def call(number: int) -> ModelCall:
    return ModelCall(1, number)


def printed(order: CallOrder, tokens: Iterable[int]) -> list[int]:
    """The calls of the tokens that can be printed, each token being one letter."""
    return [one.call for number in tokens for one, text in order.add(call(number), "x") for _ in text]


def test_the_tokens_of_the_current_call_are_printed_at_once() -> None:
    assert printed(CallOrder(), [1, 1, 1]) == [1, 1, 1]


def test_calls_in_turn_are_printed_in_order_with_no_token_of_another_between() -> None:
    order = CallOrder()
    assert printed(order, [1, 2, 3, 1, 2, 3, 1, 3, 2]) == [1, 1, 1]
    assert [(one.call, text) for one, text in order.rest()] == [(2, "xxx"), (3, "xxx")]


def test_the_next_call_follows_when_the_current_one_is_silent() -> None:
    order = CallOrder()
    assert printed(order, [1, *[2] * (EVENTS - 1)]) == [1]
    assert printed(order, [2, 2]) == [1 + 1] * (EVENTS + 1)


def test_the_next_call_follows_after_some_seconds_even_if_it_made_one_token() -> None:
    clock = Clock()
    order = CallOrder(clock)
    assert printed(order, [1, 2]) == [1]
    clock.now = SECONDS
    assert printed(order, [3]) == [2]
    assert [one.call for one, _ in order.rest()] == [3]


def test_a_call_that_was_only_preempted_continues_later() -> None:
    order = CallOrder()
    assert printed(order, [1, 2, 2, 2, 1, 2]) == [1, 2, 2, 2, 2]
    assert [one.call for one, _ in order.rest()] == [1]


def test_the_held_text_is_bounded() -> None:
    order = CallOrder()
    list(order.add(call(1), "x"))
    assert list(order.add(call(2), "y" * (MOST_HELD + 1))) == [(call(2), "y" * (MOST_HELD + 1))]
    assert order._size == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.text(min_size=1, max_size=3))))
def test_no_token_is_lost_or_changes_its_place_within_its_call(tokens: list[tuple[int, str]]) -> None:
    order = CallOrder(lambda: 0.0)
    out = [pair for number, text in tokens for pair in order.add(call(number), text)]
    out += order.rest()
    for number in range(1, 6):
        assert "".join(text for one, text in out if one.call == number) == "".join(
            text for one, text in tokens if one == number
        )
