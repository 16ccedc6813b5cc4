"""Counts what a kernel holds: the entries of every container that can be reached from it, by owner and attribute.

The test of growth compares two counts, before and after agents came and went. This module knows no table by name, so a
new table is counted, too. It never changes what it counts.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

OURS = ("kernel", "ipc", "llmosd")
CONTAINERS = (dict, list, set, frozenset, tuple, deque, weakref.WeakSet, weakref.WeakKeyDictionary)
IGNORED = (type, types.ModuleType, str, bytes, int, float, bool, type(None), types.CodeType, weakref.ref)


def count(root: object, *, only: bool = False) -> Counter[str]:
    """By "class.attribute", the number of entries of all such containers; by class, the number of its instances.

    A deque of bounded length, and what only it holds, counts nothing. Begins at `root` and, unless `only`, at the
    globals of the daemon's modules.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    hold: list[object] = []  # so that no identity is used twice
    stack: list[tuple[str, Any]] = [("root", root)]
    for name, module in list(sys.modules.items()):
        if not only and name.partition(".")[0] in OURS:
            stack += [(f"{name}.{key}", value) for key, value in vars(module).items() if not key.startswith("__")]
    while stack:
        name, value = stack.pop()
        if issubclass(type(value), IGNORED) or id(value) in seen:
            continue
        seen.add(id(value))
        hold.append(value)
        if issubclass(type(value), CONTAINERS):  # not `isinstance`: other tests leave objects with traps
            if getattr(value, "maxlen", None) is not None:
                continue
            if not isinstance(value, tuple):
                found[name] += len(value)
            stack += [(f"{name}[]", entry) for entry in _entries(value)]
        elif type(value).__module__.partition(".")[0] in OURS:
            kind = type(value).__qualname__
            found[f"class {kind}"] += 1
            stack += [(f"{kind}.{key}", entry) for key, entry in _attributes(value)]
        else:
            stack += [(name, entry) for entry in _behind(value)]
    return found


def grown(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """The counts that are higher in `after` than in `before`."""
    return {name: (before[name], number) for name, number in sorted(after.items()) if number > before[name]}


def _entries(container: Any) -> Iterator[object]:
    if isinstance(container, dict | weakref.WeakKeyDictionary):
        yield from list(container.keys())
        yield from list(container.values())
    else:
        yield from list(container)


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    names = [
        name
        for kind in type(value).__mro__
        for slots in [kind.__dict__.get("__slots__", ())]
        for name in ([slots] if isinstance(slots, str) else slots)
    ]
    for name in (*names, *getattr(value, "__struct_fields__", ())):
        if hasattr(value, name):
            yield name, getattr(value, name)
    yield from list(getattr(value, "__dict__", {}).items())
    if isinstance(value, dict | list | set | deque):
        yield "entries", list(value)


def _behind(value: object) -> Iterator[object]:
    """The objects behind a function, a bound method, a partial, a timer or a future."""
    if isinstance(value, types.MethodType):
        yield value.__self__
        yield value.__func__
    elif isinstance(value, types.FunctionType):
        yield from [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        yield from value.__defaults__ or ()
    elif isinstance(value, functools.partial):
        yield value.func
        yield from value.args
        yield from value.keywords.values()


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
