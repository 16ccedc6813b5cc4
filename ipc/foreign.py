"""Reads errors and other objects of agents without trusting them: any of their methods may raise, or never return.

An agent can override every method and attribute of its errors, even `__class__` and the class of a class. So the kernel
reads them through the functions here, which bypass such overrides or survive them. No function here raises. The
watchdog interrupts a method that never returns.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

MAX_NAME = 200  # characters of the name of a class

T = TypeVar("T")

# The functions with which Python itself reads these attributes. No class can override them.
_name: Callable[[type], str] = type.__dict__["__name__"].__get__
_dict: Callable[[BaseException], dict[str, Any]] = BaseException.__dict__["__dict__"].__get__
_args: Callable[[BaseException], tuple[Any, ...]] = BaseException.__dict__["args"].__get__
_traceback = BaseException.__dict__["__traceback__"]
_cause = BaseException.__dict__["__cause__"]
_context = BaseException.__dict__["__context__"]
_suppress_context = BaseException.__dict__["__suppress_context__"]
_group: Callable[[BaseException], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__["exceptions"].__get__


def bounded(text: str, most: int) -> str:
    """The first `most` characters of `text`, with half surrogates escaped, which UTF-8 cannot encode."""
    if len(text) > most:
        text = f"{text[:most]}… ({len(text) - most} more characters)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def is_a(value: object, kind: type[T]) -> TypeGuard[T]:
    """Like `isinstance`, which asks an object for its class."""
    return issubclass(type(value), kind)


def class_name(value: object) -> str:
    """The name of the class of `value`, cut after `MAX_NAME` characters."""
    return bounded(str.__str__(_name(type(value))), MAX_NAME)


def text_by(describe: Callable[[Any], Any], value: Any) -> str | None:
    """The text that `describe` makes of `value`; None if it raises, or if the result is no text."""
    try:
        text = describe(value)
        return str.__str__(text) if is_a(text, str) else None
    except BaseException:
        return None


def shown(value: Any, most: int = 100) -> str:
    """The `repr` of `value`, of at most `most` characters."""
    text = text_by(repr, value)
    return f"<a {class_name(value)}>" if text is None else bounded(text, most)


def arguments_of(error: BaseException) -> tuple[Any, ...]:
    """`error.args`."""
    return _args(error)


def attributes_of(error: BaseException) -> dict[str, Any]:
    """The attributes of `error` that are stored in it, without those that its class computes."""
    return _dict(error)


def errors_of(error: BaseException) -> tuple[BaseException, ...]:
    """The errors of a group; empty for other errors."""
    return _group(error) if is_a(error, BaseExceptionGroup) else ()


def traceback_of(error: BaseException) -> TracebackType | None:
    """`error.__traceback__`."""
    trace: TracebackType | None = _traceback.__get__(error)
    return trace


def cause_of(error: BaseException) -> BaseException | None:
    """`error.__cause__`."""
    cause: BaseException | None = _cause.__get__(error)
    return cause


def context_of(error: BaseException) -> BaseException | None:
    """`error.__context__`, unless it is suppressed."""
    context: BaseException | None = None if _suppress_context.__get__(error) else _context.__get__(error)
    return context


def drop_outer_frame(error: BaseException) -> None:
    """Remove the outermost frame from the traceback of `error`."""
    trace = traceback_of(error)
    _traceback.__set__(error, None if trace is None else trace.tb_next)


def forget_origin(error: BaseException) -> None:
    """Remove the traceback, the cause and the context of `error`."""
    for attribute in (_traceback, _cause, _context):
        attribute.__set__(error, None)
