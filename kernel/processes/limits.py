"""Limits: how much each process and each owner may use. A call that would exceed a limit fails, or its process ends.

Called when a process starts, when a model is called, when tokens arrive, and when private memory grows. It checks
processor times every `CPU_CHECK` seconds while any are limited. It never counts tokens or memory; it is passed the
numbers. The limits of a child are never wider than those of a parent that is an agent. The limits of an owner hold for
all its processes together, except those on mailboxes, wall time and depth, which hold for each process. The number of
a task's processes and generations is counted by its `ProcessTree`, which also has the limits of tasks that set none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import inf

import msgspec

from ipc.codec import reason_of
from ipc.errors import InvalidCall, LimitExceeded, to_wire
from ipc.syscalls import Limits, Spawn
from kernel.core.process import Process
from kernel.core.process_tree import ProcessTree
from kernel.gate import Gate
from kernel.processes.exit import ProcessExit

NEARLY = 0.9  # the part of a limit from which on explanations mention it
CPU_CHECK = 0.2  # seconds between two checks of processor times
REMEMBERED = 10_000  # owners without processes whose usage is remembered

UNLIMITED = Limits()
NONE = None, None
OF_EACH_PROCESS = ("mailbox", "mailbox_bytes", "wall_seconds", "depth")  # also where an owner has these limits


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`process`: the limits of a task, where its `Spawn` sets none. `owner`: those of each owner not in `owners`."""

    process: Limits = UNLIMITED
    owner: Limits = UNLIMITED
    owners: dict[str, Limits] = {}


class _Account:
    """The usage of one owner: `tokens` of all its processes, `cpu_seconds` of those that have ended."""

    __slots__ = ("_summed", "_summed_at", "alive", "cpu_seconds", "limits", "tokens")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.alive: dict[Process, None] = {}
        self.cpu_seconds = 0.0
        self.tokens = 0
        self._summed = 0.0
        self._summed_at = -inf

    @property
    def matters(self) -> bool:
        """Whether it has used any of a limit that does not end with its processes."""
        limits = self.limits
        return bool(
            (self.tokens and limits.tokens is not None) or (self.cpu_seconds and limits.cpu_seconds is not None)
        )

    def total_cpu(self) -> float:
        return self.cpu_seconds + sum(process.cpu_seconds for process in self.alive)

    def recent_cpu(self, now: float) -> float:
        """The same, at most `CPU_CHECK` seconds old: an owner may have so many processes that no spawn may add all."""
        if now - self._summed_at >= CPU_CHECK or now < self._summed_at:
            self._summed, self._summed_at = self.total_cpu(), now
        return self._summed


class LimitEnforcer:
    """Enforces the limits of processes and of owners, each of which has an account. An admission of the lifecycle."""

    def __init__(
        self, settings: LimitSettings, loop: asyncio.AbstractEventLoop, gate: Gate, process_exit: ProcessExit
    ) -> None:
        self._accounts: dict[str, _Account] = {}  # of owners with processes, and of those whose usage is remembered
        self._idle: OrderedDict[str, None] = OrderedDict()  # the remembered ones; longest without processes first
        self.set_limits(settings)
        self._loop = loop
        self._gate = gate
        self._process_exit = process_exit
        self._watched: dict[Process, None] = {}  # those whose processor time is limited
        self._timer: asyncio.TimerHandle | None = None

    def set_limits(self, settings: LimitSettings) -> None:
        """Give these limits to new processes, and to the owners that have limits already."""
        self._settings = settings
        self._default = None if settings.process == UNLIMITED else settings.process
        self._owners_unlimited = settings.owner == UNLIMITED and not settings.owners
        self.sees_all = not (self._owners_unlimited and self._default is None)  # whether the settings have any limit
        for owner, account in self._accounts.items():
            account.limits = settings.owners.get(owner, settings.owner)

    # ---- of processes

    def admit(self, parent: Process, call: Spawn) -> None:
        """Raises `LimitExceeded` if `parent` or the owner may have no more processes, `InvalidCall` for bad limits."""
        if call.limits is not None:
            _check_bounds(call.limits)
        limits = parent.limits
        if limits is not None and limits.children is not None:
            _check("children", f"process {parent.pid}", len(parent.children) + 1, limits.children)
        account = self._account(call.owner or parent.owner)
        if account is not None:
            who = f"owner {call.owner or parent.owner!r}"
            for name in ("children", "processes"):
                if (most := getattr(account.limits, name)) is not None:
                    _check(name, who, len(account.alive) + 1, most)
            if account.limits.cpu_seconds is not None:
                used = account.recent_cpu(self._loop.time())
                if used >= account.limits.cpu_seconds:
                    raise _exceeded("cpu_seconds", who, round(used, 3), account.limits.cpu_seconds)

    def admitted(self, process: Process, parent: Process, call: Spawn) -> None:
        """Give a new process its limits, which never change."""
        limits = self._limits_for(parent, call)
        account = self._account(process.owner)
        if account is not None:
            self._accounts[process.owner] = account
            self._idle.pop(process.owner, None)
            account.alive[process] = None
            shared = Limits(**{name: getattr(account.limits, name) for name in OF_EACH_PROCESS})
            limits = _tighter(limits or UNLIMITED, shared)
            if account.limits.cpu_seconds is not None:
                self._watch(process)
        if limits is not None and limits != UNLIMITED:
            self._set(process, call, limits)

    def _set(self, process: Process, call: Spawn, limits: Limits) -> None:
        process.limits = limits
        if limits.mailbox is not None:
            process.open_mailbox().capacity = limits.mailbox
        if limits.mailbox_bytes is not None:
            process.open_mailbox().byte_capacity = limits.mailbox_bytes
        first = process.tree is not None and process.tree.root == process.pid
        if first or (call.limits is not None and (call.limits.processes, call.limits.depth) != NONE):
            _bound_tree(process, limits)
        if limits.wall_seconds is not None and (call.deadline is None or limits.wall_seconds < call.deadline):
            if process.timer is not None:
                process.timer.cancel()
            error = _exceeded("wall_seconds", f"process {process.pid}", limits.wall_seconds, limits.wall_seconds)
            process.timer = self._loop.call_later(limits.wall_seconds, self._end_over_limit, process, error)
        if limits.cpu_seconds is not None:
            self._watch(process)

    def _watch(self, process: Process) -> None:
        """Check the processor time of `process` from now on."""
        self._watched[process] = None
        self._schedule_cpu_check()

    def process_ended(self, process: Process) -> None:
        self._watched.pop(process, None)
        account = self._accounts.get(process.owner)
        if account is not None and process in account.alive:
            del account.alive[process]
            account.cpu_seconds += process.cpu_seconds
            if not account.alive:
                self._last_process_ended(process.owner, account)

    # ---- of calls

    def check_tokens(self, process: Process, more: int = 1) -> None:
        """Raises `LimitExceeded` if `process` or its owner may not use `more` further tokens."""
        limits = process.limits
        if limits is not None and limits.tokens is not None:
            used = process.prompt_tokens + process.generated_tokens
            _check("tokens", f"process {process.pid}", used + more, limits.tokens)
        account = self._accounts.get(process.owner)
        if account is not None and account.limits.tokens is not None:
            _check("tokens", f"owner {process.owner!r}", account.tokens + more, account.limits.tokens)

    def tokens_used(self, process: Process, count: int) -> None:
        """Charge the owner of `process` for `count` tokens, which the usage of `process` includes already.

        Raises `LimitExceeded` if the process or the owner is over its limit.
        """
        account = self._accounts.get(process.owner)
        if account is not None:
            account.tokens += count
        elif process.status is not None and (late := self._account(process.owner)) is not None:
            late.tokens += count  # of a prompt that the driver reports after the end of the owner's last process
            self._accounts[process.owner] = late
            self._last_process_ended(process.owner, late)
        if account is not None or process.limits is not None:
            self.check_tokens(process, 0)

    def tokens_left(self, process: Process) -> int | None:
        """The tokens that `process` and its owner may still use; None if neither has a limit."""
        limits, account = process.limits, self._accounts.get(process.owner)
        left = []
        if limits is not None and limits.tokens is not None:
            left.append(limits.tokens - process.prompt_tokens - process.generated_tokens)
        if account is not None and account.limits.tokens is not None:
            left.append(account.limits.tokens - account.tokens)
        return max(min(left), 0) if left else None

    def nearly_used(self, process: Process) -> list[tuple[str, str, float, float]]:
        """The limits of `process` and of its owner of which `NEARLY` is used.

        Each is a tuple of the holder of the limit, its name, the amount used and the maximum. Changes nothing.
        """
        account = self._accounts.get(process.owner)
        alive = 0 if process.tree is None or process.tree.root != process.pid else process.tree.alive
        own = process.prompt_tokens + process.generated_tokens, process.cpu_seconds, len(process.children), alive
        used = [(f"process {process.pid}", process.limits, own)]
        if account is not None:
            total = account.tokens, account.total_cpu(), len(account.alive), len(account.alive)
            used.append((f"owner {process.owner}", account.limits, total))
        return [
            (who, name.replace("_", " "), amount, maximum)
            for who, limits, amounts in used
            for name, amount in zip(("tokens", "cpu_seconds", "children", "processes"), amounts, strict=True)
            if limits is not None and (maximum := getattr(limits, name)) is not None and amount >= NEARLY * maximum
        ]

    def check_memory(self, process: Process, keys: int, size: int, usage: Callable[[Process], tuple[int, int]]) -> None:
        """Raises `LimitExceeded` if `process` or its owner may not store `keys` keys and `size` bytes more.

        `usage` returns the keys and bytes that a process stores already.
        """
        account = self._accounts.get(process.owner)
        if process.limits is not None:
            _check_stored(f"process {process.pid}", process.limits, keys, size, [usage(process)])
        if account is not None and (account.limits.memory_keys, account.limits.memory_bytes) != (None, None):
            _check_stored(f"owner {process.owner!r}", account.limits, keys, size, map(usage, account.alive))

    # ---- inside

    def _limits_for(self, parent: Process, call: Spawn) -> Limits | None:
        """The limits of a new process: a client may override the default limits, an agent may only narrow its own."""
        asked = call.limits
        inherited = self._default if parent.is_client else parent.limits
        if asked is None or inherited is None:
            return asked or inherited
        if not parent.is_client:
            return _tighter(inherited, asked)
        return Limits(
            **{
                name: getattr(inherited, name) if getattr(asked, name) is None else getattr(asked, name)
                for name in Limits.__struct_fields__
            }
        )

    def _last_process_ended(self, owner: str, account: _Account) -> None:
        """Forget the account of `owner` unless its usage matters. Clients can name any owner, so bound their number."""
        if account.matters:
            self._idle[owner] = None
            if len(self._idle) > REMEMBERED:
                del self._accounts[self._idle.popitem(last=False)[0]]
        else:
            del self._accounts[owner]

    def _account(self, owner: str) -> _Account | None:
        """The account of `owner`, or a new one; None if the owner has no limits."""
        if self._owners_unlimited:
            return None
        account = self._accounts.get(owner)
        if account is None:
            limits = self._settings.owners.get(owner, self._settings.owner)
            if limits != UNLIMITED:
                return _Account(limits)
        return account

    def _schedule_cpu_check(self) -> None:
        if self._timer is None and self._watched:
            self._timer = self._loop.call_later(CPU_CHECK, self._check_cpu)

    def _check_cpu(self) -> None:
        self._timer = None
        totals: dict[str, float] = {}
        for process in tuple(self._watched):
            used, limits, account = process.cpu_seconds, process.limits, self._accounts.get(process.owner)
            if limits is not None and limits.cpu_seconds is not None and used > limits.cpu_seconds:
                error = _exceeded("cpu_seconds", f"process {process.pid}", round(used, 3), limits.cpu_seconds)
                self._end_over_limit(process, error)
            elif account is not None and account.limits.cpu_seconds is not None:
                total = totals.setdefault(process.owner, account.total_cpu())
                if total > account.limits.cpu_seconds:
                    who = f"owner {process.owner!r}"
                    error = _exceeded("cpu_seconds", who, round(total, 3), account.limits.cpu_seconds)
                    self._end_over_limit(process, error)
        self._schedule_cpu_check()

    def _end_over_limit(self, process: Process, error: LimitExceeded) -> None:
        """End a process that went over a limit, unless it is dying already."""
        if not process.dying:
            self._gate.count_error(error)
            self._process_exit.finish(process, "limit", error=to_wire(error))


def _bound_tree(process: Process, limits: Limits) -> None:
    """Limit the tree of a task, or give a child with limits of its own a tree of its own."""
    tree = process.tree
    assert tree is not None
    if tree.root != process.pid:
        tree = process.tree = ProcessTree(process.pid, process.generation, tree)
        tree.alive = 1
    if limits.processes is not None:
        tree.most = limits.processes
    if limits.depth is not None:
        tree.deepest = process.generation + limits.depth


def _check_bounds(limits: Limits) -> None:
    """Raises `InvalidCall`. The codec has checked the limits in a client's call; an agent can pass anything."""
    try:
        msgspec.convert(msgspec.structs.asdict(limits), Limits)
    except Exception as error:
        raise InvalidCall(f"limits: {reason_of(error)}") from None


def _tighter(one: Limits, other: Limits) -> Limits:
    """The stricter limit of the two, field by field."""
    bounds = {}
    for name in Limits.__struct_fields__:
        values = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        bounds[name] = min(values, default=None)
    return Limits(**bounds)


def _check_stored(who: str, limits: Limits, keys: int, size: int, stored: Iterable[tuple[int, int]]) -> None:
    for limit, more, maximum, used in zip(
        ("memory_keys", "memory_bytes"),
        (keys, size),
        (limits.memory_keys, limits.memory_bytes),
        map(sum, zip((0, 0), *stored, strict=True)),
        strict=True,
    ):
        if more > 0 and maximum is not None:
            _check(limit, who, used + more, maximum)


def _check(limit: str, who: str, wanted: float, maximum: float) -> None:
    if wanted > maximum:
        raise _exceeded(limit, who, wanted, maximum)


def _exceeded(limit: str, who: str, wanted: float, maximum: float) -> LimitExceeded:
    kind = who.partition(" ")[0]
    return LimitExceeded(
        f"{who} reached its limit of {maximum:g} {limit.replace('_', ' ')}",
        limit=f"{kind} {limit}",
        maximum=maximum,
        wanted=wanted,
    )
