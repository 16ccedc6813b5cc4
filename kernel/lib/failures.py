"""Errors as text: a summary, the place in the agent's code, and the traceback.

Called where an error leaves an agent or a tool, and for records of `logging`. Agents choose the texts and names of
their errors, so everything here is bounded and can be encoded, and an error whose text cannot be computed has a
description, too. This module never raises.
"""

from __future__ import annotations

import linecache
import os
import stat
import sysconfig
import traceback
from collections.abc import Iterator
from itertools import count, islice
from types import FrameType
from typing import Any

from ipc.errors import brief, facts_of, text_of
from ipc.foreign import (
    attributes_of,
    bounded,
    cause_of,
    class_name,
    context_of,
    errors_of,
    is_a,
    traceback_of,
)

__all__ = ["bounded", "place", "short", "summary", "traceback_text", "with_place"]

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
MAX_FILE = 4_000_000  # bytes of a file of source code that tracebacks quote

OUR_PACKAGES = frozenset({"kernel", "ipc", "llmosd", "importlib"})
LIBRARIES = tuple(
    {os.path.join(path, "") for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))}
)

CAUSE = "The above error was the direct cause of the following error:"
CONTEXT = "The following error happened while the above error was handled:"
PASSED_ON = "The above error, of another process or a tool, was raised here:"

Frames = list[tuple[FrameType, int]]


def summary(error: BaseException) -> str:
    """Type and text of `error` in one line if its text has one. A group names the errors that it consists of."""
    try:
        return _summary(error)
    except BaseException:
        return brief(error)


def place(error: BaseException) -> str:
    """The place "FILE:LINE" in the agent's code that raised `error`; empty if there is none.

    This is the innermost frame outside the kernel and the libraries. An error that another process or a tool raised
    carries its place with it. An error without such a frame has the place of its direct cause.
    """
    try:
        return _place(error)
    except BaseException:
        return ""


def short(place: str) -> str:
    """`place` without the folder."""
    return place.rpartition("/")[2]


def with_place(place: str, text: str) -> str:
    """`text` behind the short form of `place`, if there is one."""
    return f"{short(place)}: {text}" if place else text


def traceback_text(error: BaseException, *, whole: bool = False) -> str:
    """The traceback of `error`, its causes and the errors of its groups.

    Leaves out the frames of the kernel, unless `whole` is set or there are no others.
    """
    try:
        text = "\n".join(_formatted(error, 0, count(1), whole))
        if len(text) > MAX_TRACEBACK:
            half = MAX_TRACEBACK // 2
            text = f"{text[:half]}\n… ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
        return bounded(text, len(text))
    except BaseException:
        return brief(error)


# ---- inside


def _summary(error: BaseException) -> str:
    line = _type_and_text(error, MAX_TEXT)
    if not is_a(error, BaseExceptionGroup):
        return line
    leaves = list(islice(_leaves(error, 0), MAX_COUNTED + 1))
    shown = [_with_place(leaf) for leaf in leaves[:MAX_LEAVES]]
    if len(leaves) > MAX_COUNTED:
        shown.append(f"more than {MAX_COUNTED - MAX_LEAVES} more")
    elif len(leaves) > MAX_LEAVES:
        shown.append(f"{len(leaves) - MAX_LEAVES} more")
    return f"{line}: {'; '.join(shown)}"


def _place(error: BaseException) -> str:
    earlier = facts_of(error).get("place")
    if type(earlier) is str and earlier:
        return bounded(earlier, MAX_TEXT)
    frames = _agent_frames(error)
    if is_a(error, SyntaxError) and (written := _place_of_text(error)):
        return written
    if not frames:  # raised by Python itself, such as the `RuntimeError` for an agent that raises `StopIteration`
        cause = cause_of(error)
        return "" if cause is None or not _agent_frames(cause) else _place(cause)
    start = frames[0][0].f_code.co_filename
    own = [entry for entry in frames if entry[0].f_code.co_filename == start or not _is_library(entry[0])]
    frame, line = own[-1]
    return bounded(f"{frame.f_code.co_filename}:{line}", MAX_TEXT)


def _place_of_text(error: SyntaxError) -> str:
    """The place in the text that has the wrong syntax."""
    file, line = _of_text(error, "filename"), _of_text(error, "lineno")
    return bounded(f"{file}:{line}", MAX_TEXT) if type(file) is str and type(line) is int else ""


def _of_text(error: SyntaxError, name: str) -> Any:
    return SyntaxError.__dict__[name].__get__(error)


def _type_and_text(error: BaseException, most: int) -> str:
    name = bounded(class_name(error), 100)
    text = bounded(text_of(error), most)
    return f"{name}: {text}" if text else name


def _with_place(error: BaseException) -> str:
    return with_place(_place(error), _type_and_text(error, MAX_LEAF_TEXT))


def _leaves(error: BaseException, depth: int) -> Iterator[BaseException]:
    """The errors in a group and its inner groups."""
    if is_a(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        for inner in errors_of(error):
            yield from _leaves(inner, depth + 1)
    else:
        yield error


def _frames(error: BaseException) -> Frames:
    return [(frame, line or 0) for frame, line in traceback.walk_tb(traceback_of(error))]


def _agent_frames(error: BaseException) -> Frames:
    """The frames outside the kernel, outermost first."""
    return [entry for entry in _frames(error) if not _is_ours(entry[0])]


def _is_ours(frame: FrameType) -> bool:
    module = dict.get(frame.f_globals, "__name__")
    return type(module) is str and module.partition(".")[0] in OUR_PACKAGES


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(LIBRARIES) or file.startswith("<frozen")


def _formatted(error: BaseException, depth: int, numbers: Iterator[int], whole: bool) -> list[str]:
    """The lines of the traceback of `error` and of its causes, the first cause first.

    `numbers` counts the errors of the whole text. Those after the first `MAX_ERRORS` have no traceback.
    """
    chain: list[tuple[BaseException, str]] = []
    following: BaseException | None = error
    link = ""
    while following is not None and len(chain) < MAX_CHAIN and all(following is not seen for seen, _ in chain):
        chain.append((following, link))
        if (cause := cause_of(following)) is not None:
            following, link = cause, CAUSE
        else:
            following, link = context_of(following), CONTEXT
    lines: list[str] = []
    for each, link in reversed(chain):
        lines += _formatted_alone(each, depth, numbers, whole)
        if link:
            lines += ["", link, ""]
    return lines


def _formatted_alone(error: BaseException, depth: int, numbers: Iterator[int], whole: bool) -> list[str]:
    if next(numbers) > MAX_ERRORS:
        return _type_and_text(error, MAX_LEAF_TEXT).splitlines()
    lines: list[str] = []
    earlier = facts_of(error).get("traceback")
    if type(earlier) is str and earlier:
        lines += [*bounded(earlier, MAX_TRACEBACK).splitlines(), "", PASSED_ON, ""]
    frames = [] if whole else _agent_frames(error)
    frames = (frames or _frames(error))[-MAX_FRAMES:]
    if frames:
        lines += ["Traceback (most recent call last):", *_frame_lines(frames)]
    if is_a(error, SyntaxError):
        file, line, text = (_of_text(error, name) for name in ("filename", "lineno", "text"))
        if type(file) is str:
            lines.append(bounded(f'  File "{file}", line {line if type(line) is int else 0}', MAX_SOURCE))
            if type(text) is str:
                lines.append(bounded(f"    {text.strip()}", MAX_SOURCE))
    lines += _type_and_text(error, MAX_TEXT).splitlines()
    notes: Any = attributes_of(error).get("__notes__")
    if type(notes) is list:
        lines += [bounded(note, MAX_TEXT) for note in notes[:MAX_CHAIN] if type(note) is str]
    errors = errors_of(error) if depth < MAX_DEPTH else ()
    for number, inner in enumerate(errors[:MAX_CHAIN], 1):
        lines.append(f"  ---- error {number} of {len(errors)} ----")
        lines += [f"  {line}" for line in _formatted(inner, depth + 1, numbers, whole)]
    return lines


def _frame_lines(frames: Frames) -> list[str]:
    """The lines of a traceback about `frames`. Python joins repeated ones."""
    entries = []
    for frame, number in frames:
        code = frame.f_code
        file, name = bounded(code.co_filename, MAX_SOURCE), bounded(code.co_name, MAX_SOURCE)
        source = bounded(_source_line(code.co_filename, number), MAX_SOURCE)
        entries.append(traceback.FrameSummary(file, number, name, lookup_line=False, line=source))
    return [line for entry in traceback.StackSummary.from_list(entries).format() for line in entry.splitlines()]


def _source_line(file: str, number: int) -> str:
    """Line `number` of a file; empty if it is no regular file, or a large one: an agent chooses the name."""
    try:
        linecache.checkcache(file)
        if file not in linecache.cache:
            status = os.stat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
                return ""
        return linecache.getline(file, number)
    except Exception:
        return ""
