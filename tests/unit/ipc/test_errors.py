"""Errors over a wire: each keeps its type, its message and its facts, and any error can be sent."""

from __future__ import annotations

import pytest

from ipc import errors
from ipc.codec import decode, encode
from ipc.errors import ErrorInfo, LlmosError, from_wire, to_wire

ERRORS = sorted((name, kind) for name, kind in LlmosError.registry.items() if kind.__module__ == errors.__name__)


@pytest.mark.parametrize(("name", "kind"), ERRORS, ids=[name for name, _ in ERRORS])
def test_every_error_keeps_its_type_message_and_facts(name: str, kind: type[LlmosError]) -> None:
    error = kind("what was wrong", pid=7, text="ü", list=[1, 2])
    info = decode(encode(to_wire(error)), errors.ErrorInfo)
    back = from_wire(info)
    assert type(back) is kind
    assert (back.message, back.data) == ("what was wrong", {"pid": 7, "text": "ü", "list": [1, 2]})
    assert name == kind.__name__


def test_a_class_of_an_agent_does_not_take_the_name_of_one_of_ours() -> None:
    for _ in range(2):  # a file that is loaded again
        type("Busy", (LlmosError,), {"__module__": "an_agent"})
        own = type("ErrorOfATest", (LlmosError,), {"__module__": "an_agent"})
    assert type(from_wire(ErrorInfo("Busy", "try later"))) is errors.Busy
    assert type(from_wire(ErrorInfo("ErrorOfATest", "no"))) is own
    del LlmosError.registry["ErrorOfATest"]


def test_an_error_of_a_newer_daemon_becomes_a_plain_one_that_names_it() -> None:
    back = from_wire(errors.ErrorInfo("BrandNew", "sentence", {"n": 1}))
    assert type(back) is LlmosError
    assert (back.message, back.data) == ("BrandNew: sentence", {"n": 1})


def test_an_error_can_always_be_told_whatever_is_in_its_text_and_its_facts() -> None:
    """Otherwise a caller would wait for the error for ever."""
    info = to_wire(errors.ToolFailed("half a \ud800", traceback="\ud800", pid=5, what=object()))
    assert decode(encode(info), errors.ErrorInfo) == errors.ErrorInfo("ToolFailed", "half a ?", {"traceback": "?"})
    assert to_wire(ValueError("\ud800")).message == "ValueError: ?"


def test_an_error_from_outside_the_tree_keeps_its_type_in_the_message() -> None:
    back = from_wire(to_wire(KeyError("x")))
    assert type(back) is LlmosError
    assert back.message == "KeyError: 'x'"


def test_facts_called_like_parameters_survive() -> None:
    back = from_wire(errors.ErrorInfo("NotFound", "sentence", {"message": "fact", "self": 1}))
    assert back.message == "sentence"
    assert back.data == {"message": "fact", "self": 1}


class Refusing(LlmosError):
    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number=number)
        self.data = None  # type: ignore[assignment]


def test_an_error_class_of_an_agent_with_a_constructor_of_its_own_travels_by_name() -> None:
    back = from_wire(ErrorInfo("Refusing", "no", {"place": "a.py:1"}))
    assert (type(back), back.message, back.data) == (LlmosError, "Refusing: no", {"place": "a.py:1"})
    info = to_wire(Refusing("no", 1))
    assert (info.code, info.message, info.data) == ("Refusing", "no", {})


def test_an_error_whose_text_raises_has_a_wire_form() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert to_wire(Mute()).message == "Mute: (its text cannot be computed)"
    assert to_wire(LlmosError(Mute())).message == "(its text cannot be computed)"  # type: ignore[arg-type]
