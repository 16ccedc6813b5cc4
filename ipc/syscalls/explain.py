"""Explanations: what a process waits for, who can end the wait, and what happens next.

The kernel derives the answer from its tables at the moment of the call; nothing about waits is recorded.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ipc.syscalls.base import Integer, Syscall


class Participant(msgspec.Struct, frozen=True):
    """A process that has a part in a wait, such as the holder of a lock. `note` says more, such as "412 tokens"."""

    pid: int
    program: str
    note: str = ""


class WaitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A wait, as the subsystem sees it that can end the wait.

    `kind`: "queue", "memory", "loading", "generating", "swapping", "reader", "lock", "semaphore", "condition",
    "barrier", "event", "mailbox", "message", "reply", "delivery", "end", "thread", "time", "tool", "region",
    "children", "recovery", "restart", "program", "trial", "journal", "outside" or "requests"; of a process that waits
    for nothing also "running", "ready", "new", "suspended", "ending" or "ended". "program" and "trial" are the waits of
    a task that has no process: its program cannot be loaded, or it is held back.

    `doing` completes the sentence "the process is ...". `seconds`: how long the wait has lasted, None if unknown.
    `place` of `line`: the place in the line, from 1; 0 if there is no line. `ahead`: those with better places, the next
    one first. `holders` hold what the wait is about, and `held` is the sentence that the list of them completes. Both
    lists have at most 5 entries; `ahead_count` and `holder_count` count all. `state`: sentences on the present
    situation. `ends` completes the sentence "the wait ends when ...", or is empty. `timeout`: seconds until the timer
    of the wait ends it, None without a timer; `timer` says what happens then. `next`: what the policy of the model does
    next. `awaits`: the process that must act first, 0 if there is none.
    """

    kind: str
    doing: str
    seconds: float | None = None
    place: int = 0
    line: int = 0
    ahead: list[Participant] = []
    ahead_count: int = 0
    held: str = ""
    holders: list[Participant] = []
    holder_count: int = 0
    state: str = ""
    ends: str = ""
    timeout: float | None = None
    timer: str = "it times out"
    next: str = ""
    awaits: int = 0


class ChainMember(msgspec.Struct, frozen=True):
    """A process that another one waits for: what it is `doing` itself, and for how many `seconds` (None: unknown)."""

    pid: int
    program: str
    doing: str
    seconds: float | None = None


class Explanation(msgspec.Struct, frozen=True):
    """Why a process does not go on. `text` is one paragraph, made from the other fields.

    `thread` is the path of the thread that the facts are about, the most active one of `threads`; it is empty if they
    are about the whole process. `chain`: the processes that must act, each waiting for the next. `cycle`: the process,
    named before, for which the last of them waits; 0 if there is none. `notes`: further sentences, such as one on the
    deadline of the process. `task`: the id of a task that has no process; `pid` is then that of its last process, or 0.
    """

    pid: int
    program: str
    state: str
    waits_for: str
    thread: str
    threads: int
    wait: WaitFacts
    chain: list[ChainMember] = []
    cycle: int = 0
    notes: list[str] = []
    text: str = ""
    task: str = ""


class Why(Syscall, tag="why"):
    """Answers an `Explanation` of what process `pid` waits for, or of how it ended.

    With `task`, the id of a task, it is about the process of this task, or about the task if it has no process. Errors:
    `UnknownProcess`, `UnknownTask`.
    """

    pid: Integer = 0
    task: str | None = None
    returns: ClassVar[type[Explanation]] = Explanation


ExplainCalls = Why
