"""Checks the arguments of a call against the annotations of the function.

Used for agents and for tools. Arguments that do not fit raise `BadArguments`, which shows the accepted form. This
module never calls the function.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ipc.codec import reason_of
from ipc.errors import BadArguments, brief, text_of
from ipc.foreign import bounded
from ipc.syscalls import ParameterInfo
from kernel.programs.defaults import copied, mutable_defaults
from kernel.programs.parameter import Parameter
from kernel.programs.suggestion import did_you_mean, similar

MAX_REASON = 2_000  # characters of the reason why an argument does not fit


class Arguments:
    """The parameters of `function`, except those in `injected`, which the kernel supplies.

    `signature` is the text of these parameters. `all_optional`: the function can be called without any of them, and
    without `bind`, because no default has to be copied.
    """

    def __init__(self, name: str, function: Callable[..., Any], injected: Sequence[str]) -> None:
        signature = inspect.signature(function, eval_str=True)
        shown = [parameter for parameter in signature.parameters.values() if parameter.name not in injected]
        self._name = name
        text = str(inspect.Signature([_without_options_type(parameter) for parameter in shown]))
        self.signature = re.sub(rf"\b{re.escape(function.__module__)}\.", "", text)
        self._parameters = {parameter.name: parameter for parameter in parameters(function, injected)}
        self._struct = _struct(self._parameters.values())
        defaults = mutable_defaults(function)
        self._mutable_defaults = {name: value for name, value in defaults.items() if name in self._parameters}
        required = any(parameter.required for parameter in self._parameters.values())
        self.all_optional = not required and not self._mutable_defaults
        self._positional = sum(parameter.positional for parameter in self._parameters.values())

    def bind(self, args: dict[str, Any], positional: Sequence[Any] = (), *, lenient: bool = False) -> dict[str, Any]:
        """The arguments by name, converted to the annotated types, and copies of defaults that can change.

        With `lenient`, texts are parsed as on a command line: see `kernel.programs.command_line_arguments`. Raises
        `BadArguments`.
        """
        names = self._struct.__struct_fields__
        if len(positional) > self._positional:
            words = f"{self._positional} positional argument{'' if self._positional == 1 else 's'}"
            raise self._bad(f"takes {words}, got {len(positional)}")
        by_position = dict(zip(names, positional, strict=False))
        if twice := by_position.keys() & args.keys():
            raise self._bad(f"got {', '.join(sorted(twice))} twice")
        given = by_position | args
        values = self._parse(given) if lenient else self._convert(given)
        for name, default in self._mutable_defaults.items():
            if name not in values:
                values[name] = copied(default)
        return values

    def _convert(self, given: dict[str, Any]) -> dict[str, Any]:
        try:
            checked = msgspec.convert(given, self._struct)
        except msgspec.ValidationError as error:
            raise self._bad(self._explained(error, given)) from None
        except TypeError as error:
            raise self._bad(f"an argument has a type that cannot be checked: {reason_of(error)}") from None
        except BaseException as error:  # of the code of a parameter's type
            raise self._bad(f"the type of an argument raised {brief(error)}") from None
        values = {name: getattr(checked, name) for name in self._struct.__struct_fields__}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}

    def describe(self) -> list[ParameterInfo]:
        """The parameters in order, for people."""
        return [parameter.info() for parameter in self._parameters.values()]

    def _parse(self, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in self._parameters:
                raise self._bad(self._unknown(name))
        values = {}
        for name, parameter in self._parameters.items():
            if name in given:
                try:
                    values[name] = parameter.parse(given[name])
                except ValueError as error:
                    raise self._bad(str(error)) from None
            elif parameter.required:
                raise self._bad(_missing(name))
        return values

    def _bad(self, why: str) -> BadArguments:
        return BadArguments(f"{self._name}{self.signature}: {why}", program=self._name)

    def _unknown(self, name: str) -> str:
        hint = did_you_mean(similar(name, self._parameters))
        return f"no argument {name:.80}; {hint}known arguments: {', '.join(self._parameters)}"

    def _explained(self, error: msgspec.ValidationError, given: dict[str, Any]) -> str:
        """Rewrite an error of msgspec about the Struct as one about the arguments of a function."""
        text = text_of(error)
        if len(text) > MAX_REASON:  # the code of a type chooses it; the place is at its end
            text = f"{bounded(text, MAX_REASON // 2)}{text[-MAX_REASON // 2 :]}"
        reason, _, path = text.partition(" - at ")
        place = re.search(r"\$\.(\w+)(.*)`", path)
        if place is not None:
            name = place[1]
            return self._parameters[name].refusal(given[name], reason + (f" - at `${place[2]}`" if place[2] else ""))
        if missing := re.match(r"Object missing required field `(.+)`", reason):
            return _missing(missing[1])
        if unknown := re.match(r"Object contains unknown field `(.+)`", reason):
            return self._unknown(unknown[1])
        return text


def parameters(function: Callable[..., Any], injected: Sequence[str]) -> list[Parameter]:
    """The parameters of `function` that a caller gives, in order: all except those in `injected`.

    `**options: Unpack[SomeTypedDict]` becomes optional parameters. Other variadic and positional-only parameters raise
    `TypeError`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found: list[Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.name in injected:
            continue
        if parameter.kind is parameter.VAR_KEYWORD and typing.get_origin(hint) is typing.Unpack:
            options = typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
            found += [Parameter(name, kind, required=False) for name, kind in options.items()]
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function.__name__}: parameter {parameter} cannot be given by name")
        else:
            required = parameter.default is parameter.empty
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            default = "" if required else repr(parameter.default)
            found.append(Parameter(parameter.name, hint, default, required=required, positional=positional))
    return found


def _struct(given: Iterable[Parameter]) -> type[msgspec.Struct]:
    """A Struct with one field for each parameter."""
    fields: list[tuple[str, Any, Any]] = []
    for parameter in given:
        kind = parameter.kind
        if parameter.required:
            fields.append((parameter.name, kind, msgspec.NODEFAULT))
        else:
            fields.append((parameter.name, Any if kind is Any else kind | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _without_options_type(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter for the signature that people read: the same, but `**options` loses its type."""
    return parameter.replace(annotation=parameter.empty) if parameter.kind is parameter.VAR_KEYWORD else parameter


def _missing(name: str) -> str:
    return f"argument {name} is missing"
