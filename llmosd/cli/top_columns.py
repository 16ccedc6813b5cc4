"""The columns of `llmos top`: their cells, the order in which they sort, and which of them fit the screen.

Used by `llmosd.cli.top`. It never contacts the daemon, and does not load the terminal library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ipc.syscalls import ProcessInfo
from llmosd.cli import show
from llmosd.cli.table import KEY, Layout, cells, fit
from llmosd.printable import printable_line

SORTED = KEY - 1  # the weight of the column by which the rows are sorted: only the pid stays longer


class TopRow:
    """A process, and its rates since the last poll: the share of a CPU, and generated tokens per second.

    `branch`: the lines that lead to the process in a tree.
    """

    def __init__(self, info: ProcessInfo, before: ProcessInfo | None, seconds: float) -> None:
        self.info = info
        self.branch = ""
        self.cpu = self.tokens = 0.0
        if before is not None and seconds > 0:
            self.cpu = (info.usage.cpu_seconds - before.usage.cpu_seconds) / seconds
            self.tokens = (info.usage.generated_tokens - before.usage.generated_tokens) / seconds

    def matches(self, text: str) -> bool:
        """Whether `text` occurs in a text of the row, in any case of letters."""
        info = self.info
        texts = (str(info.pid), info.program, info.owner, info.state, info.waits_for)
        return any(text.casefold() in one.casefold() for one in texts)


class TopColumn:
    """A column: `show` returns its text, and `key` its sort key. `down`: the largest values come first.

    A column that sorts by numbers is aligned at the right.
    """

    def __init__(
        self,
        layout: Layout,
        show: Callable[[TopRow], str],
        key: Callable[[TopRow], Any] | None = None,
        *,
        down: bool = False,
    ) -> None:
        self.layout = layout
        self.show = show
        self.key = key or show
        self.down = down
        self.is_number = key is not None


COLUMNS = {
    "PID": TopColumn(Layout(KEY), lambda row: str(row.info.pid), lambda row: row.info.pid),
    "PARENT": TopColumn(Layout(1), lambda row: str(row.info.parent or ""), lambda row: row.info.parent),
    "PROGRAM": TopColumn(Layout(50, 12, path=True), lambda row: row.branch + row.info.program),
    "OWNER": TopColumn(Layout(2, 8), lambda row: row.info.owner),
    "PRI": TopColumn(Layout(4), lambda row: str(row.info.priority), lambda row: row.info.priority, down=True),
    "STATE": TopColumn(Layout(9, 10), lambda row: row.info.state),
    "WAITS FOR": TopColumn(Layout(7, 20), lambda row: row.info.waits_for),
    "CPU%": TopColumn(Layout(6), lambda row: f"{row.cpu:.0%}", lambda row: row.cpu, down=True),
    "TOK/S": TopColumn(Layout(8), lambda row: f"{row.tokens:.1f}", lambda row: row.tokens, down=True),
    "TOKENS": TopColumn(
        Layout(5),
        lambda row: f"{row.info.usage.prompt_tokens}/{row.info.usage.generated_tokens}",
        lambda row: row.info.usage.prompt_tokens + row.info.usage.generated_tokens,
        down=True,
    ),
    "MSGS": TopColumn(
        Layout(1),
        lambda row: f"{row.info.usage.messages_received}/{row.info.usage.messages_sent}",
        lambda row: row.info.usage.messages_received + row.info.usage.messages_sent,
        down=True,
    ),
    "BOX": TopColumn(Layout(2), lambda row: str(row.info.mailbox), lambda row: row.info.mailbox, down=True),
    "AGE": TopColumn(Layout(3), lambda row: show.duration(row.info.age), lambda row: row.info.age, down=True),
}
ORDER = list(COLUMNS)


def visible(rows: Sequence[TopRow], titles: Sequence[str], sorted_by: str, width: int | None) -> dict[str, int]:
    """The columns that fit into `width` cells, all if it is None, each with the cells that its texts get."""
    texts = [[text_of(column, row, width) for row in rows] for column in COLUMNS.values()]
    natural = [max(map(cells, (title, *column))) for title, column in zip(titles, texts, strict=True)]
    if width is None:
        return dict(zip(ORDER, natural, strict=True))
    layouts = [
        column.layout._replace(weight=max(column.layout.weight, SORTED)) if name == sorted_by else column.layout
        for name, column in COLUMNS.items()
    ]
    return {ORDER[at]: most for at, most in fit(layouts, natural, width).items()}


def text_of(column: TopColumn, row: TopRow, width: int | None) -> str:
    """The text of a cell, harmless on a terminal, and not much longer than `width` cells."""
    text = column.show(row)
    if width is not None and len(text) > width + 1:
        text = text[-width - 1 :] if column.layout.path else text[: width + 1]
    return printable_line(text)
