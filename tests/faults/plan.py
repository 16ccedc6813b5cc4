"""The plan of a trial: how the daemon dies each time, drawn from a seed, so that a trial can be repeated.

Pure. Each death says which faults are armed when the daemon starts, which signals it gets from outside, and when.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

from kernel.lib.failpoints import POINTS

FIRST = ("journal.open", "journal.migrate")  # on a folder without a journal
AT_THE_STOP = ("journal.checkpoint", "journal.close")
LATER = [name for name in POINTS if name != "journal.migrate"]  # a daemon reaches these on a folder in use, too
PATIENCE = 60.0  # seconds in which a point has to be reached
BROKEN = 0.3  # share of runs in which a file of agents is broken
AT_THE_START = ("journal.open", "journal.recover", "journal.extend")
ONCE = (*AT_THE_START, "journal.purge", "journal.vacuum", *AT_THE_STOP)  # in a run of the daemon


@dataclass(frozen=True)
class Death:
    """One run of the daemon and its end.

    `faults` are armed at its start. `live`: seconds until it is killed, from its first answer, or from its start if it
    is not `ready`. `stop`: it is asked to stop before, and has to die by itself. `orderly`: it is asked to stop after
    `live`, and has to end in order. `file`: the file on which the faults depend appears after half of `live`.
    `drivers`: how often its drivers are killed meanwhile. `may_fail`: it may refuse to start. `broken`: a file of
    agents is broken from the start to the end.
    """

    kind: str
    faults: str = ""
    live: float = 0.0
    ready: bool = True
    stop: bool = False
    orderly: bool = False
    broken: bool = False
    drivers: int = 0
    file: bool = False
    may_fail: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.faults or ''} live={self.live:.3f}"


def every_point() -> list[Death]:
    """One death at each failpoint, in an order that reaches them all."""
    names = [*FIRST, *(name for name in POINTS if name not in FIRST)]
    return [_at_point(name, 1, PATIENCE) for name in names]


def draw(seed: int, count: int, seconds: float, folder: Path) -> list[Death]:
    """Draw `count` deaths. A run that waits for no point lasts at most about `seconds`."""
    chance = random.Random(f"plan {seed}")
    deaths = [_at_point(name, 1, 5 * seconds) for name in FIRST]
    points: list[str] = []
    while len(deaths) < count:
        kind = chance.choices(
            ["random", "startup", "point", "write", "full", "errors", "slow", "clock", "drivers", "orderly"],
            [35, 10, 27, 8, 6, 4, 3, 3, 4, 4],
        )[0]
        live = chance.random() * seconds
        match kind:
            case "random":
                death = Death(kind, live=live)
            case "startup":
                death = Death(kind, live=0.05 + chance.random() * 0.35, ready=False)
            case "point":
                if not points:
                    points = chance.sample(LATER, len(LATER))
                name = points.pop()
                death = _at_point(name, 1 if name in ONCE else 1 + chance.randrange(12), 2 * seconds)
            case "write":
                death = _write(chance, 2 * seconds)
            case "full":
                error = chance.choice(["ENOSPC", "EROFS", "short"])
                death = Death(kind, f"disk.write.log={error}?{folder / 'full'}", live, file=True)
            case "errors":
                death = _errors(chance, live)
            case "slow":
                death = Death(kind, f"disk.sync.log=sleep:{0.01 + chance.random() * 0.05:.3f}", live)
            case "clock":
                jump = chance.choice([-86_000, -3600, -5, 5, 3600])
                death = Death(kind, f"clock=jump:{jump}@{1 + chance.randrange(200)}-", live)
            case "orderly":
                death = Death(kind, live=live, orderly=True)
            case _:
                death = Death(kind, live=live, drivers=1 + chance.randrange(3))
        broken = chance.random() < BROKEN
        deaths.append(dataclasses.replace(death, broken=broken))
    return deaths[:count]


def _at_point(name: str, passing: int, live: float) -> Death:
    return Death("point", f"{name}=die@{passing}", live, stop=name in AT_THE_STOP)


def _write(chance: random.Random, live: float) -> Death:
    """A death in the middle of a call on a file. Most are on the log; those on the main file move the log there."""
    call, file, most = chance.choice(
        [("write", "log", 60), ("write", "log", 60), ("sync", "log", 15), ("write", "main", 20), ("sync", "main", 2)]
    )
    action = chance.choice(["die", "torn"]) if call == "write" else "die"
    return Death("write", f"disk.{call}.{file}={action}@{1 + chance.randrange(most)}", live, may_fail=True)


def _errors(chance: random.Random, live: float) -> Death:
    """The disk fails for a while."""
    call = chance.choice(["disk.sync.log", "disk.write.log", "journal.commit", "journal.committed", "disk.sync.main"])
    first = 1 + chance.randrange(20)
    return Death("errors", f"{call}=EIO@{first}-{first + chance.randrange(4)}", live, may_fail=True)
