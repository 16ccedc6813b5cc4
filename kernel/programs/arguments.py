"""Checks the arguments of a call against the annotations of the function.

Used for agents and for tools. Arguments that do not fit raise `BadArguments` with a readable text. This module never
calls the function.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ipc.errors import BadArguments


class Arguments:
    """The parameters of `function`, except those in `injected`, which the kernel supplies.

    `signature` is the text of these parameters. `all_optional`: the function can be called without any of them.
    """

    def __init__(self, name: str, function: Callable[..., Any], injected: Sequence[str]) -> None:
        parameters = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name not in injected
        ]
        self._name = name
        self.signature = str(inspect.Signature([_without_options_type(parameter) for parameter in parameters]))
        self._struct = arguments_struct(function, injected)
        self.all_optional = not any(msgspec.structs.fields(self._struct)[n].required for n in range(len(parameters)))
        self._positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)

    def bind(self, args: dict[str, Any], positional: Sequence[Any] = (), *, lenient: bool = False) -> dict[str, Any]:
        """The arguments by name, converted to the annotated types. `lenient` also parses text as numbers and booleans.

        Raises `BadArguments`.
        """
        names = self._struct.__struct_fields__
        if len(positional) > self._positional:
            raise self._bad(f"takes {self._positional} positional arguments, got {len(positional)}")
        by_position = dict(zip(names, positional, strict=False))
        if twice := by_position.keys() & args.keys():
            raise self._bad(f"got {', '.join(sorted(twice))} twice")
        try:
            checked = msgspec.convert(by_position | args, self._struct, strict=not lenient)
        except msgspec.ValidationError as error:
            raise self._bad(_explained(str(error), names)) from None
        values = {name: getattr(checked, name) for name in names}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}

    def _bad(self, why: str) -> BadArguments:
        return BadArguments(f"{self._name}{self.signature}: {why}", program=self._name)


def arguments_struct(function: Callable[..., Any], injected: Sequence[str]) -> type[msgspec.Struct]:
    """A Struct with one field for each parameter of `function`, except those in `injected`.

    `**options: Unpack[SomeTypedDict]` becomes optional fields. Other variadic and positional-only parameters raise
    `TypeError`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.name in injected:
            continue
        if parameter.kind is parameter.VAR_KEYWORD and typing.get_origin(hint) is typing.Unpack:
            options = typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
            fields += [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in options.items()]
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function.__name__}: parameter {parameter} cannot be given by name")
        elif parameter.default is parameter.empty:
            fields.append((parameter.name, hint, msgspec.NODEFAULT))
        else:
            fields.append((parameter.name, hint | msgspec.UnsetType if hint is not Any else Any, msgspec.UNSET))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _without_options_type(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter for the signature that people read: the same, but `**options` loses its type."""
    return parameter.replace(annotation=parameter.empty) if parameter.kind is parameter.VAR_KEYWORD else parameter


def _explained(error: str, names: Sequence[str]) -> str:
    """Rewrite an error of msgspec about a Struct as one about the arguments of a function."""
    reason, _, path = error.partition(" - at `$")
    if missing := re.match(r"Object missing required field `(.+)`", reason):
        return f"argument {missing[1]} is missing"
    if unknown := re.match(r"Object contains unknown field `(.+)`", reason):
        near = difflib.get_close_matches(unknown[1], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"no argument {unknown[1]}; {hint}known arguments: {', '.join(names)}"
    return f"argument {path.strip('`.')}: {reason}"
