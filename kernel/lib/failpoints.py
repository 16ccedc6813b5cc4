"""Faults on purpose: at named points of the journal and of swapping a test has the process die, or the disk fail.

The environment variable LLMOSD_FAULTS asks for them, so that it reaches the drivers, too; the mains of the daemon and
of the drivers arm it. Where nothing is armed a point is one look at an empty table, and no file goes through the shim
of `kernel.journal.faulty_vfs`. No setting and no client can ask for a fault.

The variable is a list, parted by blanks, of `POINT=ACTION`, with `@N`, `@N-M` or `@N-` after it for the passings of the
point that are meant (all, if left out), and `?FILE` for: only while that file exists. Actions:

    die            the process ends as by `kill -9`
    torn           of a write only: half of it is written, then the process ends
    short          of a write only: half of it is written, then the disk is full
    ENOSPC, EIO …  an error of the system of that name
    sleep:S        it takes S seconds longer
    jump:S         of `clock` only: the time of day is S seconds later, or earlier
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

# Where the process can be told to die, or the disk to fail, and what happens there.
POINTS = {
    "journal.open": "the file is about to be opened",
    "journal.migrate": "a step from one version to the next is about to be committed",
    "journal.recover": "the tasks of an earlier life are about to be read",
    "journal.extend": "the file of the log is about to be made longer, once a life has begun",
    "journal.begin": "a transaction is about to begin",
    "journal.commit": "all rows of a transaction are in it, and it is about to be committed",
    "journal.committed": "it is on the disk, and nobody was told",
    "journal.answer": "those who wait for it are about to be told",
    "journal.purge": "old tasks are about to be forgotten",
    "journal.vacuum": "free pages are about to be given back",
    "journal.checkpoint": "the log is about to be moved to the main file, at the end or after an error",
    "journal.close": "the file is about to be closed at the end",
    "swap.write": "a sequence is about to be written",
    "swap.rename": "it is written, and about to get its name",
    "swap.renamed": "it has its name, and the kernel was not told",
    "swap.read": "it is about to be read back",
}
# Single calls of SQLite on its files: on the main one, on its log, and on the others.
FILES = ("main", "log", "other")
DISK = {f"disk.{call}.{file}" for call in ("open", "read", "write", "sync", "truncate") for file in FILES}
CLOCK = "clock"

RULE = re.compile(r"(?P<point>[\w.]+)=(?P<action>\w+)(:(?P<value>[-+.\d]+))?(@(?P<first>\d+)(?P<to>-)?(?P<last>\d+)?)?")
EVER = 1 << 62


class Fault:
    """One fault, which happens from the `first` to the `last` passing of `point`.

    With a `file`, only the passings while that file exists are counted.
    """

    def __init__(self, text: str) -> None:
        """Raises `ConfigError`."""
        rule, _, self.file = text.partition("?")
        match = RULE.fullmatch(rule)
        if match is None:
            raise ConfigError(f"{VARIABLE}: {text!r} is not POINT=ACTION[:VALUE][@N[-[M]]][?FILE]", key=VARIABLE)
        self.point, self.action = match["point"], match["action"]
        self.first = int(match["first"] or 1)
        self.last = int(match["last"] or EVER) if match["to"] or not match["first"] else self.first
        self.count = 0
        try:
            self.seconds = float(match["value"] or 0)
        except ValueError:
            raise ConfigError(f"{VARIABLE}: {match['value']} in {text!r} is no number", key=VARIABLE) from None
        self._check(text)

    def _check(self, text: str) -> None:
        known = POINTS.keys() | DISK | {CLOCK}
        if self.point not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"{VARIABLE}: no point {self.point!r}; there are: {names}", key=VARIABLE)
        if self.point == CLOCK:
            allowed = {"jump"}
        else:
            allowed = {"die", "sleep"} | set(errno.errorcode.values())
            if self.point.startswith("disk.write"):
                allowed |= {"torn", "short"}
        if self.action not in allowed:
            raise ConfigError(f"{VARIABLE}: {self.point} has no action {self.action!r} (in {text!r})", key=VARIABLE)

    def due(self) -> bool:
        """Count a passing; whether it is one of those that are meant."""
        if self.file and not os.path.exists(self.file):
            return False
        self.count += 1
        return self.first <= self.count <= self.last

    def perform(self) -> None:
        """Have it come to pass. Raises `OSError` if it is an error of the disk."""
        if self.action == "sleep":
            time.sleep(self.seconds)
        elif self.action in ("die", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "short":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.point)
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number), self.point)


_rules: dict[str, list[Fault]] = {}


def arm(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Take up what the variable asks for; the rules, as they stand there. Raises `ConfigError`."""
    texts = environment.get(VARIABLE, "").split()
    disarm()
    for rule in map(Fault, texts):
        _rules.setdefault(rule.point, []).append(rule)
    if CLOCK in _rules:
        time.time = _jumping(_rules[CLOCK])
    return texts


def disarm() -> None:
    """Have nothing happen any more."""
    _rules.clear()
    time.time = _real_time


def point(name: str) -> None:
    """The process passes the point of this name. May not return; may raise `OSError`."""
    if _rules:
        rule = due(name)
        if rule is not None:
            rule.perform()


def due(name: str) -> Fault | None:
    """Count a passing; the rule that it is up to the caller to perform, if there is one."""
    found = None
    for rule in _rules.get(name, ()):
        if rule.due():
            found = found or rule
    return found


def on_disk() -> bool:
    """Whether files of the journal have to go through the shim."""
    return any(name in DISK for name in _rules)


_real_time = time.time


def _jumping(rules: list[Fault]) -> Callable[[], float]:
    def now() -> float:
        return _real_time() + sum(rule.seconds for rule in rules if rule.due())

    return now
