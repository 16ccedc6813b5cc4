"""Errors whose methods and attributes do harm: they raise, never end, or return values of wrong types and sizes.

Tests raise them wherever code of an agent runs, to see that each ends what raised it and nothing else. Nothing here
knows the kernel.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, NoReturn

from ipc.errors import LlmosError


def fail(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("a trap")


def exit_at_once(*_: Any, **__: Any) -> NoReturn:
    raise SystemExit(3)


def cancel_at_once(*_: Any, **__: Any) -> NoReturn:
    raise asyncio.CancelledError


class Word(str):
    """A text whose methods all raise."""

    __slots__ = ()
    __len__ = __getitem__ = __str__ = __repr__ = __format__ = __eq__ = __hash__ = __iter__ = fail
    encode = isascii = splitlines = partition = fail


class Name(str):
    """A text of a class of its own, which does no harm by itself."""

    __slots__ = ()


class Number(float):
    """A number that compares and adds in its own way."""

    __slots__ = ()
    __lt__ = __gt__ = __le__ = __eq__ = __hash__ = __bool__ = __repr__ = __add__ = __radd__ = fail


class Whole(int):
    """The same, of whole numbers."""

    __slots__ = ()
    __lt__ = __gt__ = __le__ = __eq__ = __hash__ = __bool__ = __repr__ = __add__ = __radd__ = __index__ = fail


class Thing:
    """An object with traps only."""

    __lt__ = __gt__ = __eq__ = __hash__ = __bool__ = __repr__ = __str__ = __len__ = __iter__ = __getattr__ = fail
    __class__ = property(fail)


class TrapNames(type):
    """A class whose class has traps."""

    __name__ = __module__ = property(fail)
    __instancecheck__ = __subclasscheck__ = __repr__ = __eq__ = __hash__ = fail


TRAPS = (
    *("__str__", "__repr__", "__format__", "__eq__", "__hash__", "__reduce__", "__bool__", "__len__", "__iter__"),
    *("__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__del__"),
)
PROPERTIES = (
    *("__class__", "__notes__", "__cause__", "__context__", "__suppress_context__", "__traceback__", "__dict__"),
    *("args", "message", "data", "exceptions", "code", "filename", "lineno", "text", "deferred"),
)


class Endless(Exception):
    """An error whose cause is itself, by way of another."""


def _made(name: str, bases: tuple[type, ...], **body: Any) -> Callable[[], BaseException]:
    def make() -> BaseException:
        kind: Any = type(name, bases, body)
        return kind("the text")  # type: ignore[no-any-return]

    return make


def _cycle() -> BaseException:
    first, second = Endless("one"), Endless("two")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    return first


def _nested(depth: int) -> BaseException:
    error: Exception = ValueError("the leaf")
    for _ in range(depth):
        error = ExceptionGroup("a group", [error])
    return error


def _deep(depth: int) -> BaseException:
    """An error with a traceback of `depth` frames."""

    def dive(left: int) -> None:
        if left:
            dive(left - 1)
        raise ValueError("at the bottom")

    try:
        dive(depth)
    except ValueError as error:
        return error
    raise AssertionError


def _recursion() -> BaseException:
    def dive() -> None:
        dive()

    try:
        dive()
    except RecursionError as error:
        return error
    raise AssertionError


def _chain(length: int) -> BaseException:
    error: BaseException = ValueError("the first")
    for _ in range(length):
        following = ValueError("the next")
        following.__cause__ = error
        error = following
    return error


def _with_notes(notes: Any) -> BaseException:
    error = ValueError("with notes")
    error.__notes__ = notes
    return error


def _with_facts(**facts: Any) -> BaseException:
    return LlmosError("with facts", **facts)


ERRORS: dict[str, Callable[[], BaseException]] = {
    **{f"{trap} raises": _made("Trap", (Exception,), **{trap: fail}) for trap in TRAPS},
    **{f"{trap} raises SystemExit": _made("Trap", (Exception,), **{trap: exit_at_once}) for trap in TRAPS},
    **{f"{name} is a trap": _made("Trap", (Exception,), **{name: property(fail)}) for name in PROPERTIES},
    **{f"{name} exits": _made("Trap", (Exception,), **{name: property(exit_at_once)}) for name in PROPERTIES},
    **{f"{name} is a number": _made("Trap", (Exception,), **{name: 5}) for name in PROPERTIES if name != "__dict__"},
    **{
        f"{name} of an error of ours": _made("Trap", (LlmosError,), **{name: property(fail)})
        for name in PROPERTIES
        if name != "data"
    },
    **{f"{trap} of an error of ours": _made("Trap", (LlmosError,), **{trap: fail}) for trap in TRAPS},
    **{
        f"{name} of a cancellation": _made("Trap", (asyncio.CancelledError,), **{name: property(fail)})
        for name in PROPERTIES
    },
    **{f"{name} of a SyntaxError": _made("Trap", (SyntaxError,), **{name: property(fail)}) for name in PROPERTIES},
    "all traps": _made("Trap", (Exception,), **dict.fromkeys(TRAPS, fail), **dict.fromkeys(PROPERTIES, property(fail))),
    "its text is cancelled": _made("Trap", (Exception,), __str__=cancel_at_once),
    "its text is a trap": _made("Trap", (Exception,), __str__=lambda self: Word("x")),
    "its text is half a letter": lambda: ValueError("half a \ud800"),
    "its text is long": lambda: ValueError("x" * 50_000_000),
    "its text has zeros": lambda: ValueError("\0" * 100),
    "its name is long": _made("N" * 10_000_000, (Exception,)),
    "its class has traps": lambda: TrapNames("Trap", (Exception,), {})("the text"),
    "its message is a trap": _made("Trap", (LlmosError,), message=Word("x")),
    "a group in 10,000 groups": lambda: _nested(10_000),
    "a group of traps": lambda: BaseExceptionGroup("a group", [_made("Trap", (Exception,), __str__=fail)()] * 3),
    "causes in a circle": _cycle,
    "10,000 causes": lambda: _chain(10_000),
    "900 frames": lambda: _deep(500),
    "RecursionError": _recursion,
    "MemoryError": MemoryError,
    "notes that are traps": lambda: _with_notes([Word("x"), 5, object(), "y" * 1_000_000] * 1000),
    "notes that are a trap": lambda: _with_notes(Word("x")),
    "facts that cannot be encoded": lambda: _with_facts(a=object(), b=1 << 100, c="\ud800", d=Word("x")),
    "facts that are large": lambda: _with_facts(a="x" * 20_000_000, b=["y" * 1000] * 10_000),
    "facts with traps for names": lambda: _with_facts(place=Word("x"), traceback=Word("x")),
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "BaseException": BaseException,
}

# Errors whose class has a name that a report can have.
PLAIN_CLASSES = frozenset(
    name for name in ERRORS if " of a" not in name and name not in ("StopIteration", "its class has traps")
)


def odd_object(chance: random.Random) -> Any:
    """An object that an agent can pass to a call, and that no frame carries."""
    itself: list[Any] = []
    itself.append(itself)
    kind: Any = chance.choice((Word, Name, Number, Whole, Thing, list, object, int, str, dict, complex))
    values: dict[Any, Any] = {list: itself, int: 1 << 100, str: "half a \ud800", dict: {Thing: Thing()}}
    return values[kind] if kind in values else kind("x") if issubclass(kind, Name | Word) else kind()
