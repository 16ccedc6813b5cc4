"""Every value that an agent can return is one JSON document on one line."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from ipc.codec import decode, encode
from ipc.errors import NotEncodable
from ipc.syscalls import ExitStatus
from llmosd.cli.json_text import json_text

NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "document"),
    [
        ("text", '"text"'),
        (None, "null"),
        ([True, 1, 1.5], "[true,1,1.5]"),
        (NAN, '"NaN"'),
        (INFINITY, '"Infinity"'),
        (-INFINITY, '"-Infinity"'),
        ({"a": [NAN, {"b": (INFINITY, 1.0)}], "c": None}, '{"a":["NaN",{"b":["Infinity",1.0]}],"c":null}'),
        ({NAN: 1, -INFINITY: 2, 1.5: 3}, '{"NaN":1,"-Infinity":2,"1.5":3}'),
        ({1: NAN}, '{"1":"NaN"}'),
        ({True: 1, None: 2}, '{"true":1,"null":2}'),
        ({(1, "a"): 2}, '{"[1,\\"a\\"]":2}'),
        ({b"\x00\xff": 1}, '{"AP8=":1}'),
        ({b"\x00\xff": NAN}, '{"AP8=":"NaN"}'),
        (b"\x00\xff", '"AP8="'),
        ({3}, "[3]"),
        (frozenset({NAN}), '["NaN"]'),
        (datetime(2026, 12, 1, tzinfo=UTC), '"2026-12-01T00:00:00Z"'),
        (msgspec.msgpack.Ext(5, b"\x00\xff"), '{"code":5,"data":"AP8="}'),
        (1 << 70, str(1 << 70)),
        ("half \ud800", '"half \\\\ud800"'),
    ],
)
def test_a_value_has_one_form(value: Any, document: str) -> None:
    assert json_text(value) == document
    json.loads(document)


def test_a_struct_with_a_number_that_is_not_finite_keeps_its_fields() -> None:
    row = ExitStatus(1, "agent", "done", value=[NAN])
    finite = json.loads(json_text(msgspec.structs.replace(row, value=["NaN"])))
    assert json.loads(json_text(row)) == finite


def test_bytes_that_only_look_like_such_a_number_change_nothing() -> None:
    value = {"data": b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", "text": "Ë\x7f"}
    assert json.loads(json_text(value)) == {"data": "y3/4AAAAAAAA", "text": "Ë\x7f"}


def test_what_an_agent_returned_arrives_as_one_document() -> None:
    value = decode(encode({"scores": [0.5, NAN], 7: {"deep": [-INFINITY]}}))
    assert json.loads(json_text(value)) == {"scores": [0.5, "NaN"], "7": {"deep": ["-Infinity"]}}


def test_a_document_has_no_character_that_controls_a_terminal() -> None:
    text = "\x1b[2J\x07 \x9b31m \u202eexe\u2028 \x7f é 𝄞"
    document = json_text({text: text})
    assert json.loads(document) == {text: text}
    assert document.isprintable()
    assert "é 𝄞" in document
    ascii_only = json_text({text: text}, ascii_only=True)
    assert ascii_only.isascii()
    assert json.loads(ascii_only) == {text: text}


def test_a_value_without_a_form_is_an_error() -> None:
    nested: Any = NAN
    for _ in range(5000):
        nested = [nested]
    for value in (object(), nested):
        with pytest.raises(NotEncodable, match="as JSON"):
            json_text(value)
