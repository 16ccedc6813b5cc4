"""Fault injection: at named points of the journal and of swapping, a test makes the process die or the disk fail.

The environment variable LLMOSD_FAULTS arms faults. The daemon and the drivers, which inherit the variable, read it when
they start. If no fault is armed, a point costs one look at an empty table, and no file goes through the layer of
`kernel.journal.faulty_vfs`. No setting and no client can ever arm a fault.

The variable is a list of `POINT=ACTION`, separated by spaces. `@N`, `@N-M` or `@N-` after the action selects the passes
of the point at which the action happens (default: all). `?FILE` at the end counts only the passes while FILE exists.
Actions:

    die            the process ends as by `kill -9`
    torn           writes only: half of the data is written, then the process ends
    short          writes only: half of the data is written, then the disk is full
    ENOSPC, EIO …  the system error of that name
    TypeError …    the error of Python of that name, such as a value from outside causes; not for `disk.` points
    SQLITE_FULL …  the error of SQLite with that code; for `journal.` points only
    sleep:S        the operation takes S seconds longer
    jump:S         `clock` only: the time of day moves by S seconds, forward or backward
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Mapping

from ipc.errors import ConfigError

VARIABLE = "LLMOSD_FAULTS"

# The points at which the process can die or the disk can fail, and the state of the work at each.
POINTS = {
    "journal.open": "the file is about to be opened",
    "journal.migrate": "a step from one version to the next is about to be committed",
    "journal.recover": "the tasks of previous runs are about to be read",
    "journal.extend": "the WAL is about to be extended, at the start of a run",
    "journal.begin": "a transaction is about to begin",
    "journal.apply": "the rows of a request, or of all requests of a transaction, are about to be written",
    "journal.commit": "all rows of a transaction are in it, and it is about to be committed",
    "journal.committed": "the transaction is on disk, and nobody has been notified",
    "journal.answer": "the callers that wait for the commit are about to be notified",
    "journal.purge": "old tasks are about to be deleted",
    "journal.vacuum": "free pages are about to be returned to the file system",
    "journal.checkpoint": "the WAL is about to be copied to the main file, at a stop or after an error",
    "journal.close": "the file is about to be closed at a stop",
    "swap.write": "a sequence is about to be written",
    "swap.rename": "the state is written, and the file is about to get its name",
    "swap.renamed": "the file has its name, and the kernel has not been notified",
    "swap.read": "a state is about to be read back",
}
# Single calls of SQLite on its files: the main file, the WAL, and all others.
FILES = ("main", "log", "other")
DISK = {f"disk.{call}.{file}" for call in ("open", "read", "write", "sync", "truncate") for file in FILES}
CLOCK = "clock"

SYNTAX = re.compile(
    r"(?P<point>[\w.]+)=(?P<action>\w+)(:(?P<value>[-+.\d]+))?(@(?P<first>\d+)(?P<to>-)?(?P<last>\d+)?)?"
)
FOREVER = 1 << 62

# The classes of errors that values from outside, a lack of memory or a mistake cause in Python.
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        AssertionError,
        AttributeError,
        BufferError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        RecursionError,
        RuntimeError,
        StopIteration,
        TypeError,
        UnicodeError,
        ValueError,
    )
}
# The primary result codes of SQLite that are errors (sqlite3.h), in the order of their numbers, from 1.
SQLITE = tuple(
    f"SQLITE_{name}"
    for name in (
        *("ERROR", "INTERNAL", "PERM", "ABORT", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT", "IOERR", "CORRUPT"),
        *("NOTFOUND", "FULL", "CANTOPEN", "PROTOCOL", "EMPTY", "SCHEMA", "TOOBIG", "CONSTRAINT", "MISMATCH", "MISUSE"),
        *("NOLFS", "AUTH", "FORMAT", "RANGE", "NOTADB"),
    )
)


class Fault:
    """One fault, which happens from the `first` to the `last` pass of `point`.

    With a `file`, only the passes while that file exists are counted.
    """

    def __init__(self, text: str) -> None:
        """Parse one entry of the variable. Raises `ConfigError`."""
        rule, _, self.file = text.partition("?")
        match = SYNTAX.fullmatch(rule)
        if match is None:
            raise ConfigError(f"{VARIABLE}: {text!r} is not POINT=ACTION[:VALUE][@N[-[M]]][?FILE]", key=VARIABLE)
        self.point, self.action = match["point"], match["action"]
        self.first = int(match["first"] or 1)
        self.last = int(match["last"] or FOREVER) if match["to"] or not match["first"] else self.first
        self.count = 0
        try:
            self.seconds = float(match["value"] or 0)
        except ValueError:
            raise ConfigError(f"{VARIABLE}: {match['value']} in {text!r} is not a number", key=VARIABLE) from None
        self._check(text)

    def _check(self, text: str) -> None:
        known = POINTS.keys() | DISK | {CLOCK}
        if self.point not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"{VARIABLE}: no point {self.point!r}; known points: {names}", key=VARIABLE)
        if self.point == CLOCK:
            allowed = {"jump"}
        else:
            allowed = {"die", "sleep"} | set(errno.errorcode.values())
            if self.point.startswith("disk.write"):
                allowed |= {"torn", "short"}
            if self.point in POINTS:
                allowed |= ERRORS.keys()
            if self.point.startswith("journal."):
                allowed |= set(SQLITE)
        if self.action not in allowed:
            raise ConfigError(f"{VARIABLE}: {self.point} has no action {self.action!r} (in {text!r})", key=VARIABLE)

    def next_fault(self) -> bool:
        """Count a pass, and return whether the fault happens at this one."""
        if self.file and not os.path.exists(self.file):
            return False
        self.count += 1
        return self.first <= self.count <= self.last

    def perform(self) -> None:
        """Make the fault happen. Raises the planned error, if it is one; does not return if the process dies."""
        if self.action == "sleep":
            time.sleep(self.seconds)
        elif self.action in ("die", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "short":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.point)
        elif self.action in ERRORS:
            raise ERRORS[self.action](f"planned at {self.point}")
        elif self.action in SQLITE:
            import apsw  # only here: the drivers, which share this module, never load SQLite

            raise apsw.exception_for(SQLITE.index(self.action) + 1)
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number), self.point)


_faults: dict[str, list[Fault]] = {}


def arm(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Disarm all faults, arm those that the variable lists, and return these as text. Raises `ConfigError`."""
    texts = environment.get(VARIABLE, "").split()
    disarm()
    for fault in map(Fault, texts):
        _faults.setdefault(fault.point, []).append(fault)
    if CLOCK in _faults:
        time.time = _jumping(_faults[CLOCK])
    return texts


def disarm() -> None:
    """Disarm all faults."""
    _faults.clear()
    time.time = _real_time


def point(name: str) -> None:
    """Pass the point called `name`. An armed fault may end the process or raise an error."""
    if _faults:
        fault = next_fault(name)
        if fault is not None:
            fault.perform()


def next_fault(name: str) -> Fault | None:
    """Count a pass of the point called `name`, and return the fault that the caller has to perform, if any."""
    found = None
    for fault in _faults.get(name, ()):
        if fault.next_fault():
            found = found or fault
    return found


def needs_shim() -> bool:
    """Whether an armed fault requires that the journal's files go through `kernel.journal.faulty_vfs`."""
    return any(name in DISK for name in _faults)


_real_time = time.time


def _jumping(faults: list[Fault]) -> Callable[[], float]:
    def now() -> float:
        return _real_time() + sum(fault.seconds for fault in faults if fault.next_fault())

    return now
