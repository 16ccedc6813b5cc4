"""Objects of agents are read without trusting them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipc import foreign
from ipc.errors import ErrorInfo, LlmosError, brief, to_wire
from ipc.malformed import complaint
from tests.support.hostile import ERRORS, Number, Thing, Whole, Word


@pytest.mark.parametrize("kind", [Word, Number, Whole, Thing], ids=lambda kind: kind.__name__)
def test_any_object_has_a_short_form(kind: type) -> None:
    assert foreign.shown(kind("x") if kind is Word else kind()) == f"<a {kind.__name__}>"


def test_a_short_form_is_bounded_and_can_be_encoded() -> None:
    assert foreign.shown("x" * 1_000_000, 10) == "'xxxxxxxxx… (999992 more characters)"
    assert foreign.shown("half a \ud800").encode()


def test_a_text_is_a_plain_text_even_if_its_class_overrides_all_methods() -> None:
    text = foreign.text_by(lambda value: value, Word("abc"))
    assert type(text) is str
    assert text == "abc"


@pytest.mark.parametrize("describe", [lambda value: 5, lambda value: b"x", lambda value: 1 / 0])
def test_what_is_no_text_has_none(describe: object) -> None:
    assert foreign.text_by(describe, "x") is None  # type: ignore[arg-type]


def made(make: Callable[[], BaseException]) -> BaseException:
    """The error, or the one that its own constructor raises."""
    try:
        return make()
    except BaseException as error:
        return error


@pytest.mark.filterwarnings("ignore")  # of `__del__` that raises
def test_every_error_has_a_bounded_wire_form() -> None:
    for name, make in ERRORS.items():
        error = made(make)
        info = to_wire(error)
        assert type(info) is ErrorInfo, name
        assert len(info.message) < 70_000, name
        assert len(info.code) < 300, name
        assert len(brief(error)) < 1_000, name


def test_a_wire_form_says_how_much_it_leaves_out() -> None:
    assert to_wire(LlmosError("x" * 70_000)).message.endswith("x… (4464 more characters)")


def test_the_id_of_a_request_is_found_even_if_its_call_cannot_be_decoded() -> None:
    deep = b"\x91" * 100_000
    for number, coded in (
        (1, b"\x01"),
        (200, b"\xcc\xc8"),
        (70_000, b"\xce\x00\x01\x11\x70"),
        (1 << 40, b"\xcf\0\0\1\0\0\0\0\0"),
    ):
        for call in (deep, b"\x92\xa4ping\xa1\xff", b"", b"\xc1"):
            found = complaint(b"\x93\xa7request" + coded + call, ValueError("no"))
            assert found is not None
            assert (found[0], type(found[1]).__name__) == (number, "InvalidCall")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x93",
        b"\x93\xa7request",
        b"\x93\xa7request\x00",
        b"\x93\xa7request\xff\xc0",
        b"\x93\xa7request\xcf\x00",
        b"\xc1",
    ],
)
def test_a_frame_without_the_id_of_a_request_is_not_answered(payload: bytes) -> None:
    assert complaint(payload, ValueError("no")) is None
