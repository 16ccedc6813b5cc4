"""Pages of listings: an answer has a bounded number of rows, each of a bounded size. A client asks for one at a time.

Called by the handlers of listings. A call that asks for a whole listing gets an error if the listing is longer than one
page, never a part of it. The clients ask page by page. This module never sees a process or a connection.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

from ipc.errors import LimitExceeded
from ipc.foreign import bounded
from ipc.syscalls import Syscall
from kernel.lib.validation import check_text

MAX_TEXT = 4_000  # characters of a text in a long row
MAX_AFTER = 4_096  # characters of the name after which a page begins: no name is longer
MAX_START = 2**48  # rows; no listing is as long, and `islice` takes no number above 2**63

T = TypeVar("T")
Row = TypeVar("Row", bound=msgspec.Struct)


def shortened(text: str, most: int = 200) -> str:
    """`text`, cut to `most` characters for a row of a listing."""
    return text if len(text) <= most else text[: most - 3] + "..."


def small_row(row: Row) -> Row:
    """`row` with all texts above `MAX_TEXT` characters cut in the middle: the end of an error says most.

    Half surrogates, such as those of a file name that is not UTF-8, are escaped.
    """
    texts = ((field, getattr(row, field)) for field in row.__struct_fields__)
    changed = {field: small for field, text in texts if isinstance(text, str) and (small := _small(text)) != text}
    return msgspec.structs.replace(row, **changed) if changed else row


def _small(text: str) -> str:
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} ... {text[-MAX_TEXT // 2 :]}"
    return bounded(text, len(text))


def names_after(names: Iterable[str], after: str | None, call: type[Syscall]) -> list[str]:
    """The names of one page of `call`, sorted: the first ones after `after`, or all if it is None.

    Raises `LimitExceeded` if these are more than a page, and `InvalidCall`.
    """
    if after is None:
        found = list(names)
        _check(len(found), call, 'after=""')
        return sorted(found)
    check_text(after, "the name after which a page begins", MAX_AFTER)
    return heapq.nsmallest(call.page, (name for name in names if name > after))


def from_place(rows: Sequence[T] | Iterable[T], start: int | None, call: type[Syscall]) -> list[T]:
    """The rows of one page of `call`: from place `start` on, from 0, or all if it is None.

    Raises `LimitExceeded` if these are more than a page.
    """
    if start is None:
        found = list(rows)
        _check(len(found), call, "start=0")
        return found
    return list(islice(rows, min(start, MAX_START), min(start, MAX_START) + call.page))


def _check(count: int, call: type[Syscall], how: str) -> None:
    if count > call.page:
        raise LimitExceeded(
            f"{call.__name__} would answer {count} rows, and one answer has at most {call.page}; ask for the first "
            f"page with {how}",
            limit="page",
            maximum=call.page,
            wanted=count,
        )
