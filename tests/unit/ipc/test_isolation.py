"""Isolation: a value that goes from one process to another shares nothing that can change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given

from ipc.codec import isolate, reveal
from ipc.errors import NotEncodable
from tests.support.strategies import Plain


@given(Plain)
def test_isolation_gives_the_same_value_and_shares_nothing_that_can_change(value: Any) -> None:
    isolated = isolate(value)
    assert reveal(isolated) == value
    assert not isinstance(isolated, list | dict | bytearray)
    one, two = reveal(isolated), reveal(isolated)
    assert not ({id(part) for part in mutable_parts(one)} & {id(part) for part in mutable_parts(two)})
    assert not ({id(part) for part in mutable_parts(one)} & {id(part) for part in mutable_parts(value)})


def mutable_parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(part for item in value.values() for part in mutable_parts(item))]
    if isinstance(value, list):
        return [value, *(part for item in value for part in mutable_parts(item))]
    return []


class Thawed(msgspec.Struct):
    items: list[int]


def test_a_struct_that_can_change_is_copied() -> None:
    value = Thawed([1])
    isolated = isolate(value)
    value.items.append(2)
    assert reveal(isolated) == {"items": [1]}


def test_a_subclass_of_a_plain_type_is_not_passed_on_as_it_is() -> None:
    class Name(str):
        extra: list[int]

    with pytest.raises(NotEncodable):
        isolate(Name("x"))


def test_numbers_out_of_range_are_refused_by_isolation() -> None:
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(NotEncodable):
            isolate(number)
    for number in (2**64 - 1, -(2**63)):
        assert isolate(number) == number
