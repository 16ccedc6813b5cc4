"""Recordings of a daemon: when each call arrived, started and ended; as a file, and as tasks to simulate.

Written by `llmos record`, read by `llmos simulate` and the benches. The file is one JSON object. It holds lengths,
times and names, never prompts or answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from ipc.errors import InvalidWorkload
from ipc.syscalls import FinishedCall
from llmosd.simulator.workload import WorkloadCall, WorkloadTask

VERSION = 1


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a daemon, in the order in which they ended.

    Times are in seconds of the daemon's clock. `lost`: the number of calls that are missing, because the daemon dropped
    them from its log before the recorder read them.
    """

    version: int = VERSION
    calls: list[FinishedCall] = []
    lost: int = 0


def write(recording: Recording, path: Path) -> None:
    """Write `recording` to `path`. Raises `InvalidWorkload` if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.encode(recording) + b"\n")
    except OSError as error:
        raise InvalidWorkload(f"{path}: {error.strerror}; name a file that can be written") from None


def read(path: Path) -> Recording:
    """Read the recording in `path`. Raises `InvalidWorkload`, which names the file and the reason."""
    try:
        recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    except OSError as error:
        raise InvalidWorkload(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InvalidWorkload(f"{path}: not a recording of `llmos record`: {error}") from None
    if recording.version != VERSION:
        raise InvalidWorkload(f"{path}: a recording of version {recording.version}; this llmosd reads {VERSION}")
    for call in recording.calls:
        if not call.submitted <= (call.started or call.submitted) <= call.ended:
            raise InvalidWorkload(f"{path}: time runs backwards in call {call.number}")
    return recording


def tasks(recording: Recording) -> list[WorkloadTask]:
    """Turn a recording into tasks that make the same calls again.

    A recording does not say for which answers a process waited. So each call is taken to depend on the last call of its
    process that had ended when it was submitted, and is submitted again after the same wait. A call without such a
    predecessor arrives at its recorded time. Calls that failed are left out. Raises `InvalidWorkload` if no calls
    remain.
    """
    processes = _by_process(recording)
    if not processes:
        raise InvalidWorkload("the recording has no call that was answered")
    start = min(calls[0].submitted for calls in processes.values())
    return [_task(calls, start) for calls in processes.values()]


def origins(recording: Recording) -> list[tuple[int, int]]:
    """The program id and the pid of each task that `tasks` returns, in the same order."""
    return list(_by_process(recording))


def _by_process(recording: Recording) -> dict[tuple[int, int], list[FinishedCall]]:
    """The answered calls by program id and pid, in order of arrival; processes in the order of their first calls."""
    found: dict[tuple[int, int], list[FinishedCall]] = {}
    done = (call for call in recording.calls if not call.error and call.generated)
    for call in sorted(done, key=lambda call: (call.submitted, call.number)):
        found.setdefault((call.program_id, call.pid), []).append(call)
    return found


def _task(calls: list[FinishedCall], start: float) -> WorkloadTask:
    first = calls[0]
    deadline = None if first.deadline is None else max(first.deadline - first.submitted, 1e-9)
    specs = []
    for place, call in enumerate(calls):
        before = [other for other in range(place) if calls[other].ended <= call.submitted]
        after = max(before, key=lambda other: calls[other].ended, default=None)
        since = first.submitted if after is None else calls[after].ended
        specs.append(
            WorkloadCall(
                prompt=call.prompt,
                tokens=call.generated,
                wait=call.submitted - since,
                after=() if after is None else (after,),
                limit=max(call.limit, call.generated) if call.limit else 0,
                priority=call.priority,
            )
        )
    return WorkloadTask(
        arrival=first.submitted - start,
        calls=tuple(specs),
        name=f"{first.program} {first.pid}",
        owner=first.owner,
        weight=first.weight,
        priority=first.priority,
        deadline=deadline,
    )


def order_agreement(one: dict[int, float], other: dict[int, float]) -> float:
    """The share of pairs of names whose ends are in the same order in both; pairs of equal ends do not count."""
    names = sorted(one.keys() & other.keys())
    same = pairs = 0
    for place, name in enumerate(names):
        for second in names[:place]:
            here, there = one[name] - one[second], other[name] - other[second]
            if here and there:
                pairs += 1
                same += (here > 0) == (there > 0)
    return same / pairs if pairs else 1.0


def ends(calls: Iterable[FinishedCall]) -> dict[tuple[int, int, int], float]:
    """When each call ended, by program id, pid and its place among the calls of that process."""
    found: dict[tuple[int, int, int], float] = {}
    places: dict[tuple[int, int], int] = {}
    for call in sorted(calls, key=lambda call: (call.submitted, call.number)):
        key = (call.program_id, call.pid)
        places[key] = places.get(key, -1) + 1
        found[(*key, places[key])] = call.ended
    return found
