"""Suggests a known name that is similar to a mistyped one.

Used where an error is made: for arguments, programs and tools, and by the command line for commands, options and
registered names. It never decides what a mistyped name stands for.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_COMPARED = 1000  # names; the comparison of one takes some 10 microseconds


def similar(word: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is most similar to `word`, if any is similar."""
    import difflib
    from itertools import islice

    near = difflib.get_close_matches(word[:100], islice(known, MOST_COMPARED), n=1)
    return near[0] if near else None


def did_you_mean(near: str | None) -> str:
    """A question about a similar name, such as "did you mean run? ", with the space that follows; "" without one."""
    return "" if near is None else f"did you mean {near}? "
