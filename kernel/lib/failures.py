"""Errors as text: a summary, the place in the agent's code, and the traceback.

Called where an error leaves an agent or a tool, and for records of `logging`. Agents choose the texts and names of
their errors, so everything here is bounded and can be encoded, and an error whose text cannot be computed has a
description, too. This module never raises.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from types import FrameType
from typing import Any

from ipc.errors import facts_of, text_of

MAX_TEXT = 2_000  # characters of the text of an error
MAX_LEAF_TEXT = 300  # of each error in a group, in the summary of the group
MAX_TRACEBACK = 32_768  # characters
MAX_CHAIN = 10  # errors of a chain of causes, and of a group
MAX_LEAVES = 5  # errors of a group in the summary of the group
MAX_COUNTED = 1_000  # errors of a group that its summary counts
MAX_DEPTH = 5  # groups in groups
MAX_ERRORS = 100  # in the traceback of one error, with all causes and groups: groups in groups can name any number
MAX_FRAMES = 100  # of one error
MAX_SOURCE = 400  # characters of a line of source code in a traceback

OUR_PACKAGES = frozenset({"kernel", "ipc", "llmosd", "importlib"})
LIBRARIES = tuple(
    {os.path.join(path, "") for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))}
)

CAUSE = "The above error was the direct cause of the following error:"
CONTEXT = "The following error happened while the above error was handled:"
PASSED_ON = "The above error, of another process or a tool, was raised here:"

Frames = list[tuple[FrameType, int]]


def bounded(text: str, most: int) -> str:
    """The first `most` characters of `text`, with half surrogates escaped, which UTF-8 cannot encode."""
    if len(text) > most:
        text = f"{text[:most]}… ({len(text) - most} more characters)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def summary(error: BaseException) -> str:
    """Type and text of `error` in one line if its text has one. A group names the errors that it consists of."""
    line = _type_and_text(error, MAX_TEXT)
    if not isinstance(error, BaseExceptionGroup):
        return line
    leaves = list(islice(_leaves(error, 0), MAX_COUNTED + 1))
    shown = [_with_place(leaf) for leaf in leaves[:MAX_LEAVES]]
    if len(leaves) > MAX_COUNTED:
        shown.append(f"more than {MAX_COUNTED - MAX_LEAVES} more")
    elif len(leaves) > MAX_LEAVES:
        shown.append(f"{len(leaves) - MAX_LEAVES} more")
    return f"{line}: {'; '.join(shown)}"


def place(error: BaseException) -> str:
    """The place "FILE:LINE" in the agent's code that raised `error`; empty if there is none.

    This is the innermost frame outside the kernel and the libraries. An error that another process or a tool raised
    carries its place with it. An error without such a frame has the place of its direct cause.
    """
    earlier = facts_of(error).get("place")
    if isinstance(earlier, str) and earlier:
        return bounded(earlier, MAX_TEXT)
    frames = _agent_frames(error)
    if isinstance(error, SyntaxError) and error.filename and error.lineno is not None:
        return bounded(f"{error.filename}:{error.lineno}", MAX_TEXT)
    if not frames:  # raised by Python itself, such as the `RuntimeError` for an agent that raises `StopIteration`
        cause = error.__cause__
        return "" if cause is None or not _agent_frames(cause) else place(cause)
    start = frames[0][0].f_code.co_filename
    own = [entry for entry in frames if entry[0].f_code.co_filename == start or not _is_library(entry[0])]
    frame, line = own[-1]
    return bounded(f"{frame.f_code.co_filename}:{line}", MAX_TEXT)


def short(place: str) -> str:
    """`place` without the folder."""
    return place.rpartition("/")[2]


def with_place(place: str, text: str) -> str:
    """`text` behind the short form of `place`, if there is one."""
    return f"{short(place)}: {text}" if place else text


def traceback_text(error: BaseException) -> str:
    """The traceback of `error`, its causes and the errors of its groups, without the frames of the kernel."""
    text = "\n".join(_formatted(error, 0, count(1)))
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
    return bounded(text, len(text))


# ---- inside


def _type_and_text(error: BaseException, most: int) -> str:
    name = bounded(type(error).__name__, 100)
    text = bounded(text_of(error), most)
    return f"{name}: {text}" if text else name


def _with_place(error: BaseException) -> str:
    return with_place(place(error), _type_and_text(error, MAX_LEAF_TEXT))


def _leaves(error: BaseException, depth: int) -> Iterator[BaseException]:
    """The errors in a group and its inner groups."""
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        for inner in error.exceptions:
            yield from _leaves(inner, depth + 1)
    else:
        yield error


def _frames(error: BaseException) -> Frames:
    return [(frame, line or 0) for frame, line in traceback.walk_tb(error.__traceback__)]


def _agent_frames(error: BaseException) -> Frames:
    """The frames outside the kernel, outermost first."""
    return [entry for entry in _frames(error) if not _is_ours(entry[0])]


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in OUR_PACKAGES


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(LIBRARIES) or file.startswith("<frozen")


def _formatted(error: BaseException, depth: int, numbers: Iterator[int]) -> list[str]:
    """The lines of the traceback of `error` and of its causes, the first cause first.

    `numbers` counts the errors of the whole text. Those after the first `MAX_ERRORS` have no traceback.
    """
    chain: list[tuple[BaseException, str]] = []
    following: BaseException | None = error
    link = ""
    while following is not None and len(chain) < MAX_CHAIN and all(following is not seen for seen, _ in chain):
        chain.append((following, link))
        if following.__cause__ is not None:
            following, link = following.__cause__, CAUSE
        else:
            following, link = (None if following.__suppress_context__ else following.__context__), CONTEXT
    lines: list[str] = []
    for each, link in reversed(chain):
        lines += _formatted_alone(each, depth, numbers)
        if link:
            lines += ["", link, ""]
    return lines


def _formatted_alone(error: BaseException, depth: int, numbers: Iterator[int]) -> list[str]:
    if next(numbers) > MAX_ERRORS:
        return _type_and_text(error, MAX_LEAF_TEXT).splitlines()
    lines: list[str] = []
    earlier = facts_of(error).get("traceback")
    if isinstance(earlier, str) and earlier:
        lines += [*bounded(earlier, MAX_TRACEBACK).splitlines(), "", PASSED_ON, ""]
    frames = (_agent_frames(error) or _frames(error))[-MAX_FRAMES:]
    if frames:
        lines.append("Traceback (most recent call last):")
        with suppress(Exception):  # the file of the source may be anything
            for entry in traceback.StackSummary.extract(iter(frames)).format():
                lines += [bounded(line, MAX_SOURCE) for line in entry.splitlines()]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(bounded(f'  File "{error.filename}", line {error.lineno}', MAX_SOURCE))
        if isinstance(error.text, str):
            lines.append(bounded(f"    {error.text.strip()}", MAX_SOURCE))
    lines += _type_and_text(error, MAX_TEXT).splitlines()
    notes: Any = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        lines += [bounded(note, MAX_TEXT) for note in notes[:MAX_CHAIN] if isinstance(note, str)]
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        for number, inner in enumerate(error.exceptions[:MAX_CHAIN], 1):
            lines.append(f"  ---- error {number} of {len(error.exceptions)} ----")
            lines += [f"  {line}" for line in _formatted(inner, depth + 1, numbers)]
    return lines
