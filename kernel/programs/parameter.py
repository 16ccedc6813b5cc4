"""One parameter of an agent or a tool: its type, the parser of its texts, and its description.

Made and used by `kernel.programs.arguments`. It never sees the other arguments of a call.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec
from msgspec import inspect as nodes

from ipc.codec import reason_of
from ipc.errors import brief
from ipc.syscalls import ParameterInfo
from kernel.programs.accepted_form import accepted_form
from kernel.programs.command_line_arguments import text_parser

SHOWN = 60  # characters of a refused value, and of a default


class Parameter:
    """A parameter. `kind`: its annotation. `default`: its default as Python code; "" if there is none.

    `positional`: its argument can be given by position.
    """

    def __init__(
        self, name: str, kind: Any, default: str = "", *, required: bool = True, positional: bool = False
    ) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.required = required
        self.positional = positional

    def parse(self, given: Any) -> Any:
        """The value that a text of the command line stands for. Raises `ValueError` with an explanation.

        A value that is not a text is converted to the type.
        """
        try:
            if not isinstance(given, str | bytes):
                return msgspec.convert(given, self.kind, strict=False)
            return self._parser(given)
        except msgspec.DecodeError as error:
            raise ValueError(self.refusal(given, reason_of(error), as_text=True)) from None
        except RecursionError:
            raise ValueError(self.refusal(given, "it is nested too deeply", as_text=True)) from None
        except TypeError as error:
            raise ValueError(f"argument {self.name} has a type that cannot be checked: {reason_of(error)}") from None
        except BaseException as error:  # of the code of the type
            raise ValueError(f"argument {self.name}: its type raised {brief(error)}") from None

    def refusal(self, given: Any, why: str, *, as_text: bool = False) -> str:
        """The text of the error about a value that does not fit. `why`: the reason in the words of msgspec."""
        form = self._form
        if form is None:
            return f"argument {self.name}: {why}"
        reason, _, place = why.partition(" - at ")
        detail = f"{_place(place)}: {reason}" if place else reason
        if not place and re.fullmatch("Expected `.*`, got `.*`", reason):
            detail = ""  # the accepted form says it in better words
        shown = _shown(given, as_text=as_text)
        return f"argument {self.name}: expected {form}; got {shown}" + (f" ({detail})" if detail else "")

    def info(self) -> ParameterInfo:
        """The parameter for people."""
        return ParameterInfo(
            self.name,
            _type_text(self.kind),
            self._form or "",
            _cut(self.default),
            required=self.required,
            positional=self.positional,
        )

    @cached_property
    def _node(self) -> nodes.Type:
        return nodes.AnyType() if self.kind is object else nodes.type_info(self.kind)

    @cached_property
    def _parser(self) -> Callable[[str | bytes], Any]:
        return text_parser(self.kind, self._node)

    @cached_property
    def _form(self) -> str | None:
        """The accepted form; None for a type that msgspec does not support."""
        try:
            return accepted_form(self._node)
        except (TypeError, ValueError):
            return None


def _place(place: str) -> str:
    """A place inside a value, in the words of msgspec such as "`key` in `$.a`", for people: "a key at .a"."""
    of_key, _, path = place.rpartition(" in ")
    path = path.strip("`").removeprefix("$")
    return " ".join(word for word in ("a key" if of_key else "", f"at {path}" if path else "") if word) or "at the top"


def _type_text(kind: Any) -> str:
    """An annotation as source code, without the names of modules."""
    text = inspect.formatannotation(kind)
    # The first alternative matches strings, which stay: Literal["a.b"] names no module.
    return re.sub(r"""('[^']*'|"[^"]*")|\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])""", lambda match: match[1] or "", text)


def _shown(given: Any, *, as_text: bool) -> str:
    """A refused value on one line: a text as it was given if `as_text`, else as JSON."""
    if isinstance(given, bytes):
        return "bytes that are not UTF-8 text" if as_text else "bytes"
    if as_text and isinstance(given, str) and given.isprintable() and given.strip():
        return _cut(given)
    try:
        return _cut(msgspec.json.encode(given[:SHOWN] if isinstance(given, str) else given).decode())
    except (TypeError, ValueError, RecursionError):
        return f"a value of type {type(given).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
