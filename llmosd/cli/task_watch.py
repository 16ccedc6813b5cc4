"""Notices new tasks and the ends of tasks, for `llmos history --follow`.

The command polls it. Each poll reads a bounded number of rows through `read`, the request for the history. It never
sleeps, and never prints.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise

from ipc.syscalls import TaskInfo

FIRST = 1000  # rows of the first poll: the end of an older task is not noticed
PAGE = 100  # rows of the first request of a later poll
MORE = 1000  # rows of each further request, if more tasks than a page are new
MOST_PAGES = 10  # further requests of one poll
MOST_SINGLE = 50  # tasks that ran before the page, and that one poll asks about
MOST_SEEN = 20_000  # ids that are remembered

Read = Callable[[int, str | None], list[TaskInfo]]


class TaskWatch:
    """Watches the history of the daemon. `read` returns at most so many tasks before an id (None: the newest)."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._seen: dict[str, None] = {}  # the ids of known tasks, in the order in which they became known
        self._unended: dict[str, str | None] = {}  # by the id of a task without an end: the id of the task after it

    def first(self, most: int) -> list[TaskInfo]:
        """The last `most` tasks, the oldest first. Call it once, before `poll`."""
        rows = self._read(max(FIRST, most), None)
        self._note(rows)
        return rows[:most][::-1]

    def poll(self) -> list[TaskInfo]:
        """The tasks that are new or have ended since the last call, in the order in which that happened."""
        rows = self._newest()
        found = [row for row in rows if row.id not in self._seen or (row.ended and row.id in self._unended)]
        self._note(rows)
        found += self._ended_earlier({row.id for row in rows})
        return sorted(found, key=lambda row: row.ended or row.submitted)

    # ---- inside

    def _newest(self) -> list[TaskInfo]:
        """The tasks back to one that is known, the newest first."""
        rows = page = self._read(PAGE, None)
        asked = PAGE
        for _ in range(MOST_PAGES):
            if len(page) < asked or any(row.id in self._seen for row in page):
                break
            page, asked = self._read(MORE, rows[-1].id), MORE
            rows = rows + page
        return rows

    def _note(self, rows: list[TaskInfo]) -> None:
        """Remember `rows`, which have no gap, the newest first."""
        after = {older.id: newer.id for newer, older in pairwise(rows)}
        for row in reversed(rows):
            self._seen[row.id] = None
            if row.ended:
                self._unended.pop(row.id, None)
            else:
                self._unended[row.id] = after.get(row.id)
        for known in (self._seen, self._unended):
            for old in list(islice(known, max(len(known) - MOST_SEEN, 0))):
                del known[old]

    def _ended_earlier(self, read: set[str]) -> list[TaskInfo]:
        """Tasks that have ended and are not among those just `read`. Asks about each in turn."""
        found = []
        earlier = ((number, after) for number, after in self._unended.items() if after and number not in read)
        for number, after in list(islice(earlier, MOST_SINGLE)):
            del self._unended[number]
            for row in self._read(1, after):
                if row.id == number and row.ended:
                    found.append(row)
                elif row.id == number:
                    self._unended[number] = after  # behind the others
        return found
