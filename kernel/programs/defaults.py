"""Defaults of parameters that can change, such as a list: each call gets a copy of its own.

Used by the check of arguments. Python would pass the same object to all calls, so that tasks of different users shared
it. Other objects, such as a sentinel or a connection, are never copied: they may have to be the same object.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, MutableMapping, MutableSequence, MutableSet
from typing import Any

import msgspec


def mutable_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of `function` that have to be copied, by parameter."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if _is_mutable(parameter.default)}


def copied(default: Any) -> Any:
    """A copy of a default, or the same object if it cannot be copied."""
    try:
        return copy.deepcopy(default)
    except Exception:  # it contains something like a lock
        return default


def _is_mutable(default: Any) -> bool:
    if isinstance(default, MutableSequence | MutableMapping | MutableSet):
        return True
    if isinstance(default, tuple):
        return any(_is_mutable(part) for part in default)
    if isinstance(default, msgspec.Struct):
        return not default.__struct_config__.frozen
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return not type(default).__dataclass_params__.frozen  # type: ignore[attr-defined]
    return False
