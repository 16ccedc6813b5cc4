"""Texts of a command line become values by the type of the parameter; a refusal shows the accepted form."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict, Unpack
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta
from msgspec import inspect as nodes

from ipc.abi import AgentMark
from ipc.errors import BadArguments
from ipc.syscalls import DescribeProgram, ParameterInfo, Spawn
from kernel.programs.accepted_form import accepted_form
from kernel.programs.loader import Program
from llmosd.context import ChatOptions, Context
from tests.support.system import System


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict, total=False):
    title: str


class Pair(NamedTuple):
    left: str
    right: int = 1


class Node(msgspec.Struct):
    value: int
    below: Node | None = None


class Circle(msgspec.Struct, tag="circle"):
    radius: float


class Square(msgspec.Struct, tag="square"):
    side: float


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


Title = NewType("Title", str)


def bound(kind: Any, text: str | bytes, *, lenient: bool = True) -> Any:
    """The value of parameter `x` of type `kind` for a text."""
    return program(kind).bind({"x": text}, lenient=lenient)["x"]


def program(kind: Any) -> Program:
    async def takes(ctx: Context, x: Any) -> None: ...

    takes.__annotations__ = {"ctx": Context, "x": kind}
    return Program(takes, AgentMark("takes", ""), "test")


def refusal(kind: Any, text: str | bytes, *, lenient: bool = True) -> str:
    with pytest.raises(BadArguments) as caught:
        bound(kind, text, lenient=lenient)
    return caught.value.message.partition("argument x: expected ")[2]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        # The type excludes texts: JSON.
        (list[str], '["a", "b"]', ["a", "b"]),
        (list, "[1, {}]", [1, {}]),
        (Sequence[int], "[1]", [1]),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (set[int], "[1, 1]", {1}),
        (frozenset[str], '["a"]', frozenset({"a"})),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (dict[int, str], '{"1": "a"}', {1: "a"}),
        (Mapping[str, Any], '{"a": [null]}', {"a": [None]}),
        (Point, '{"x": 1}', Point(1)),
        (list[Point], '[{"x": 1, "y": 2}]', [Point(1, 2)]),
        (Movie, '{"title": "M"}', {"title": "M"}),
        (Pair, '["a", 2]', Pair("a", 2)),
        (Node, '{"value": 1, "below": {"value": 2}}', Node(1, Node(2))),
        (Circle | Square, '{"type": "square", "side": 2}', Square(2.0)),
        (dict[str, list[Point]], '{"a": [{"x": 1}]}', {"a": [Point(1)]}),
        (list[int] | None, "[1]", [1]),
        (list[int] | None, "null", None),
        (None, "null", None),
        (int, "5", 5),
        (int, "1e3", 1000),
        (int, "5\n", 5),
        (Colour, "red\n", Colour.RED),
        (str, "5\n", "5\n"),
        (int, "123456789012345678901234567890", 123456789012345678901234567890),
        (int | None, "null", None),
        (int | None, "-3", -3),
        (Annotated[int, Meta(ge=1)], "1", 1),
        (float, "5", 5.0),
        (float, "-Infinity", -math.inf),
        (bool, "true", True),
        (bool, "False", False),
        (bool, "1", True),
        (int | float, "5", 5),
        (int | list[int], "[5]", [5]),
        (Level, "2", Level.HIGH),
        (Literal[1, 2], "2", 2),
        # The usual text of a value that is a string in JSON; its JSON works as well.
        (Colour, "red", Colour.RED),
        (Colour, '"red"', Colour.RED),
        (Colour | None, "null", None),
        (Literal["a", 1], "a", "a"),
        (Literal["a", 1], "1", 1),
        (Decimal, "0.10", Decimal("0.10")),
        (date, "2024-05-31", date(2024, 5, 31)),
        (datetime, "2024-05-31T12:00:00Z", datetime(2024, 5, 31, 12, tzinfo=UTC)),
        (timedelta, "PT90S", timedelta(seconds=90)),
        (UUID, "12345678123456781234567812345678", UUID(int=0x12345678123456781234567812345678)),
        # The type allows texts: as is.
        (str, "[1]", "[1]"),
        (str, '"a"', '"a"'),
        (str, "", ""),
        (str | None, "null", "null"),
        (int | str, "5", "5"),
        (str | list[str] | None, '["a"]', '["a"]'),
        (Title, "5", "5"),
        (Annotated[str, Meta(min_length=1)], "5", "5"),
        (bytes, "aGk=", b"aGk="),
        (bytes, "é", "é".encode()),
        (bytes, b"\xff", b"\xff"),
        (bytearray, "a", bytearray(b"a")),
        (bytes | None, "null", b"null"),
        # Any: JSON if the text is JSON.
        (Any, '{"a": [1]}', {"a": [1]}),
        (Any, "5", 5),
        (Any, "null", None),
        (Any, '"5"', "5"),
        (Any, "", ""),
        (Any, "hello", "hello"),
        (Any, "[1", "[1"),
        (Any, "nan", "nan"),
        (Any, "1e999", "1e999"),
        (Any, "[" * 100_000, "[" * 100_000),
        (object, "[1]", [1]),
        (list[Any], '["5", 5]', ["5", 5]),
    ],
)
def test_a_text_becomes_a_value_of_the_type(kind: Any, text: str | bytes, value: Any) -> None:
    got = bound(kind, text)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(bound(float, "NaN"))


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (list[str], "x y", 'a JSON array of strings, such as ["a", "b"]; got x y'),
        (list[str], "[1]", 'a JSON array of strings, such as ["a", "b"]; got [1] (at [0]: Expected `str`, got `int`)'),
        (list[str], '["1", ', 'a JSON array of strings, such as ["a", "b"]; got ["1",  (Input data was truncated)'),
        (list[int], '["1"]', "a JSON array of whole numbers, such as [1, 2]; got"),
        (int, "many", "a whole number, such as 1; got many"),
        (int, "1.5", "a whole number, such as 1; got 1.5"),
        (int, "", 'a whole number, such as 1; got ""'),
        (int, "a\nb", 'a whole number, such as 1; got "a\\nb"'),
        (int | None, "None", "a whole number or null, such as 1; got None"),
        (Annotated[int, Meta(ge=1, le=5)], "9", "a whole number from 1 to 5, such as 1; got 9"),
        (Annotated[int, Meta(ge=1000001)], "9", "a whole number from 1000001, such as 1000001; got 9"),
        (Annotated[int, Meta(gt=0, le=5)], "9", "a whole number above 0 and up to 5, such as 1; got 9"),
        (dict[int, str], '{"a": "b"}', 'got {"a": "b"} (a key: Expected `int`, got `str`)'),
        (list[dict[int, str]], '[{"a": "b"}]', "(a key at [0]: Expected `int`, got `str`)"),
        (bool, "yes", "true or false; got yes"),
        (Colour, "green", "red or blue; got green"),
        (Literal["a", "b"], "c", "a or b; got c"),
        (date, "tomorrow", "a date, such as 2024-05-31; got tomorrow"),
        (Point, "{}", 'a JSON object with x and y (optional), such as {"x": 1}; got {} (Object missing required'),
        (Pair, "[]", 'a JSON array of left and right (optional), such as ["a"]; got []'),
        (set[int], "1", "a JSON array of different whole numbers, such as [1, 2]; got 1"),
        (dict[str, int], "[]", 'a JSON object with values that are whole numbers, such as {"a": 1}; got []'),
        (Annotated[str, Meta(min_length=2)], "x", "a text of 2 or more characters; got x"),
        (Title | None, b"\xff", "a text, or with --json null; got bytes that are not UTF-8 text"),
        (Any, b"\xff", "JSON or any other text; got bytes that are not UTF-8 text"),
        (list[int], b"\xff", "a JSON array of whole numbers, such as [1, 2]; got bytes that are not UTF-8 text"),
        (list[Any], "[" * 100_000, "(it is nested too deeply)"),
        (complex, "1", "a Python object of type complex, which no text stands for; got 1"),
    ],
)
def test_a_refusal_shows_the_accepted_form(kind: Any, text: str | bytes, why: str) -> None:
    assert why in refusal(kind, text)


def test_a_refusal_is_short_whatever_the_text() -> None:
    assert len(refusal(int, "9" * 100_000 + "x")) < 200
    assert len(refusal(list[int], '["a"' + ', "a"' * 100_000 + "]")) < 200
    assert len(refusal(int, "x" * 100_000, lenient=False)) < 200


def test_a_value_of_the_wrong_type_is_refused_with_the_accepted_form() -> None:
    assert refusal(list[str], "x y", lenient=False) == 'a JSON array of strings, such as ["a", "b"]; got "x y"'
    assert refusal(int, "5", lenient=False) == 'a whole number, such as 1; got "5"'


def test_a_type_that_cannot_be_checked_is_named() -> None:
    for lenient in (True, False):
        with pytest.raises(BadArguments, match="cannot be checked: Type unions may not contain"):
            bound(list[int] | set[int], "[1]", lenient=lenient)


KINDS = [int, float, bool, None, str, bytes, Decimal, date, datetime, timedelta, UUID, Colour, Level, Literal["a", 1]]
KINDS += [list[str], tuple[int, str], tuple[()], set[int], dict[int, Colour], Point, Movie, Pair, Node, Circle | Square]
KINDS += [list[Point], list[Node], list[list[float]], dict[str, list[Pair]], list[int | None], list[bytes], list[date]]
KINDS += [Annotated[int, Meta(ge=5)], Annotated[int, Meta(le=-5, multiple_of=2)], Annotated[float, Meta(gt=0, lt=0.2)]]
KINDS += [Annotated[float, Meta(ge=7)], Annotated[float, Meta(le=-7)], list[Any], dict, list[Literal["a"]]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_example_of_a_form_is_accepted(kind: Any) -> None:
    form = accepted_form(nodes.type_info(kind))
    example = form.partition(", such as ")[2]
    if example:
        bound(kind, example)


async def test_texts_by_name_and_by_position_are_parsed_alike(system: System) -> None:
    async def joins(ctx: Context, letters: list[str], by: str, times: int = 1) -> str:
        return by.join(letters) * times

    system.program(joins)
    pid = await system.call(Spawn("joins", {"by": "1", "times": "2"}, ('["a","b"]',), lenient=True))
    assert await system.result(pid) == "a1ba1b"


def test_a_text_for_an_unknown_or_a_missing_parameter_is_refused() -> None:
    with pytest.raises(BadArguments, match="argument x is missing"):
        program(int).bind({}, lenient=True)
    with pytest.raises(BadArguments, match="no argument xx; did you mean x"):
        program(int).bind({"x": "1", "xx": "2"}, lenient=True)


def test_values_that_are_no_texts_are_converted_even_among_texts() -> None:
    assert program(bool).bind({"x": 1}, lenient=True) == {"x": True}
    assert program(Any).bind({"x": [1]}, lenient=True) == {"x": [1]}


# ---- the description of a program


async def test_a_program_describes_its_parameters(system: System) -> None:
    async def shows(
        ctx: Context, points: list[Point], text: str = "a", *, flag: bool = False, **options: Unpack[ChatOptions]
    ) -> None:
        """Shows points.

        In a second paragraph, more.
        """

    system.program(shows)
    info = await system.call(DescribeProgram("shows"))
    assert info.doc == "Shows points.\n\nIn a second paragraph, more."
    first, second, third, *options = info.parameters
    assert first == ParameterInfo(
        "points",
        "list[Point]",
        'a JSON array of objects with x and y (optional), such as [{"x": 1}]',
        "",
        required=True,
        positional=True,
    )
    assert second == ParameterInfo("text", "str", "a text", "'a'", required=False, positional=True)
    assert third == ParameterInfo("flag", "bool", "true or false", "False", required=False, positional=False)
    by_name = {option.name: option for option in options}
    assert list(by_name) == list(ChatOptions.__annotations__)
    assert by_name["temperature"].form == "a number or null, such as 0.5"
    assert not any(option.required or option.positional for option in options)


def test_the_examples_are_json() -> None:
    form = accepted_form(nodes.type_info(dict[str, list[Point]]))
    assert json.loads(form.partition(", such as ")[2]) == {"a": [{"x": 1}]}
