"""Programs, or tools, that have the same name: the last one has it and hides the others.

Used by the program loader at each look at everything. It writes one warning to the log for each name that several
have, and another when they change. It never decides which one has the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

log = structlog.get_logger("kernel.programs")


class Rivals:
    """The `kind` ("programs" or "tools") of each name that several have, the one that has it last."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._rivals: dict[str, dict[int, Any]] = {}  # by name; by identity: a tool may be found in two ways
        self._reported: dict[str, list[str]] = {}  # the addresses of those of which the log has a warning

    def of(self, name: str) -> list[Any]:
        """All that have `name`, if several have it."""
        return list(self._rivals.get(name, {}).values())

    def update(self, found: Iterable[tuple[str, Any, str]]) -> None:
        """All there are: the name, the program or tool, and its address."""
        by_name: dict[str, dict[int, Any]] = {}
        addresses: dict[int, str] = {}
        for name, item, address in found:
            rivals = by_name.setdefault(name, {})
            rivals.pop(id(item), None)
            rivals[id(item)] = item
            addresses[id(item)] = address
        self._rivals = {name: rivals for name, rivals in by_name.items() if len(rivals) > 1}
        reported = {}
        for name, rivals in self._rivals.items():
            reported[name] = [addresses[number] for number in rivals]
            if self._reported.get(name) != reported[name]:
                runs, hidden = reported[name][-1], reported[name][:-1]
                log.warning(f"{self._kind} have the same name", name=name, runs=runs, hidden=hidden)
        self._reported = reported
