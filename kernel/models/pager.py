"""The pager of one model: parked sequences go to disk while their keys and values are in others' way, and come back.

Owned by the model runtime, which tells it what the driver reports. The driver writes and reads the files; the pager
says which, and when, by what it costs against how long they are likely to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from ipc.messages import Log
from kernel.drivers import protocol
from kernel.models.footprint import Footprint
from kernel.models.generation import Generation
from kernel.models.leases import SWAPPING, LeaseTable
from kernel.models.sequence import QUEUED, RUNNING, Sequence
from kernel.models.swap import SwapArea

FULL = 0.9  # of the memory for keys and values: above that it is short, and paged
ROOMY = 0.8  # down to that
OVERHEAD = 0.01  # seconds that a swap costs besides writing and reading
DISK_RATE = 200e6  # bytes per second, until the first swap was measured
SERVICE = 5.0  # seconds that a sequence holds a slot, until the first was measured
PATIENCE = 10.0  # seconds that a suspended sequence is taken to wait at least
RETRY = 5.0  # seconds without paging after the driver refused
ROUNDING = 64  # tokens that a driver may reserve beyond what it needs
SMOOTHING = 0.7  # weight of the past in what is measured

log = structlog.get_logger("kernel.models")


class Candidate(NamedTuple):
    """A parked sequence: its bytes, and the seconds for which it is likely to wait on."""

    sequence: Generation
    size: int
    wait: float


def choose(candidates: Iterable[Candidate], need: int, rate: float, *, forced: bool) -> list[Generation]:
    """Which generations to swap out for `need` bytes, the least cost for its wait first.

    Unless `forced`, only those that pay: they wait longer than it takes to write and read them at `rate` bytes per
    second.
    """
    priced = [(OVERHEAD + 2 * one.size / rate, one) for one in candidates]
    worthy = [(cost / max(one.wait, 1e-9), one) for cost, one in priced if forced or cost < one.wait]
    chosen: list[Generation] = []
    for _, one in sorted(worthy, key=lambda pair: (pair[0], -pair[1].sequence.id)):
        if need <= 0:
            break
        chosen.append(one.sequence)
        need -= one.size
    return chosen


class Pager:
    """`swapped` counts the sequences that lie on disk now, `outs`, `restores` and `recomputations` all so far."""

    def __init__(
        self,
        model: str,
        max_tokens: int,
        area: SwapArea,
        leases: LeaseTable,
        footprint: Footprint,
        ask: Callable[[protocol.ToDriver], None],
        clock: Callable[[], float],
    ) -> None:
        self.outs = self.restores = self.recomputations = 0
        self.kv = protocol.KVUsage()
        self.swapped: set[int] = set()
        self.refusal = ""  # why the last swap failed; empty once one succeeds
        self.leaving: dict[int, str] = {}  # sequences that are being written, and where
        self._model = model
        self._max_tokens = max_tokens  # of a sequence that sets no bound
        self._area = area
        self._leases = leases
        self._footprint = footprint
        self._ask = ask
        self._clock = clock
        self._rate = DISK_RATE
        self._service = SERVICE
        self._refused_until = 0.0
        self._stuck = False  # by its last word, the driver can run nothing for want of memory

    def update(self, kv: protocol.KVUsage, steps: int, moved: bool, sequences: Iterable[Sequence]) -> None:
        """Page if memory is short, as the driver reports it.

        `steps` is how many steps the driver made, `moved` whether any token came of them.
        """
        self.kv = kv
        self._stuck = not steps and kv.waiting > 0
        self._footprint.kv_used, self._footprint.kv_cached = kv.used, kv.cached
        granted = self._footprint.kv_memory
        if kv.waiting or (granted and kv.used > FULL * granted):
            self._page(kv.waiting, moved, sequences)

    def stalled(self, sequences: Iterable[Sequence]) -> None:
        """Page for a driver that says nothing, maybe because only parked sequences have memory.

        If the driver said that nothing can run, and nothing helped then, this helps now.
        """
        self._page(self.kv.waiting if self._stuck else self._leases.used, not self._stuck, sequences)

    def _page(self, waiting: int, moved: bool, sequences: Iterable[Sequence]) -> None:
        if self.leaving or self._clock() < self._refused_until:
            return
        residents = [one for one in sequences if one.in_driver]
        generations = [one for one in residents if isinstance(one, Generation)]
        forced = waiting > 0 and self._is_short(generations, asked=len(generations) < len(residents))
        granted = self._footprint.kv_memory
        need = max(self.kv.used - int(ROOMY * granted) if granted else 0, int(forced))
        chosen = choose(self._parked(generations), need, self._rate, forced=forced)
        if not chosen and forced:
            chosen = _in_the_way(generations, waiting, moved)
        for sequence in chosen:
            self.swap_out(sequence)

    def _is_short(self, generations: list[Generation], *, asked: bool) -> bool:
        """Whether a sequence waits for want of memory; `asked`: there are queries, which may.

        A driver has other reasons to let one wait, such as a quota. It gives memory in the order of admission, and one
        for which there is none holds up those after it. So while others run it is short if it is so for the least of
        those that wait, and if nothing runs, for any of them.
        """
        granted, token_bytes = self._footprint.kv_memory, self._footprint.token_bytes
        if not granted or not token_bytes:
            return True
        waiting = [one for one in generations if one.state == RUNNING and not one.has_kv]
        if not waiting or (asked and self._stuck):  # then it is queries that wait, of a size that nobody knows
            return self.kv.used > (0 if self._stuck else granted // 2)
        needs = [len(one.prompt_ids or ()) + (one.sampling.max_tokens or self._max_tokens) for one in waiting]
        need = max(needs) if self._stuck else min(needs)
        return self.kv.used + (need + ROUNDING) * token_bytes > granted

    def switch_cost(self, sequence: Generation, rate: float) -> float:
        """Tokens that its slot could make in the time that it takes to write `sequence` and to read it back.

        All slots together make `rate` tokens per second. 0 while the parked sequences find memory.
        """
        if not self.kv.waiting or not self._leases.used:
            return 0.0
        seconds = OVERHEAD + 2 * sequence.length * max(self._footprint.token_bytes, 1) / self._rate
        return seconds * rate / self._leases.used

    def swap_out(self, sequence: Generation) -> None:
        """Have the driver write the state of `sequence` and forget it; until then it runs on no slot."""
        try:
            path = self._area.path(sequence.id)
        except OSError as error:
            self._refused(sequence, f"{error.strerror}: {error.filename}")
            return
        self.leaving[sequence.id] = path
        self._leases.block(sequence, SWAPPING)
        self._ask(protocol.SwapOut(sequence.id, path))

    def swapped_out(self, sequence: Generation, message: protocol.SwappedOut) -> None:
        """The driver has written it, or could not."""
        path = self.leaving.pop(sequence.id, "")
        if message.error is not None:
            self._refused(sequence, message.error.message)
            self._area.remove(sequence.id)
        else:
            self.outs += 1
            self.refusal = ""
            self._stuck = False
            self.swapped.add(sequence.id)
            sequence.in_driver = False
            sequence.file = path
            if message.size and message.seconds > 0:
                self._rate = _smoothed(self._rate, message.size / message.seconds)
            self._leases.free(sequence)
            if sequence.record is not None and not sequence.cancelled:
                sequence.record.swapped_out(sequence)
        self._leases.unblock(sequence, SWAPPING)

    def restored(self, sequence: Generation, message: protocol.Restored) -> None:
        """The driver has read it back, or computes it anew."""
        if not message.recomputed:
            self.restores += 1
            sequence.recomputed = ""
        else:
            self.recomputations += 1
        if message.recomputed and not sequence.recomputed:  # else its process was told already
            sequence.recomputed = message.why
            fields = {"model": self._model, "why": message.why, "tokens": len(sequence.ids)}
            log.warning("a sequence is computed anew", sequence=sequence.id, pid=sequence.process.pid, **fields)
            event = "the state of a generation was lost and is computed anew"
            sequence.process.write_log(Log(sequence.process.pid, time.time(), "warning", event, fields))
        self._drop_file(sequence)

    def driver_gone(self, held: Iterable[Sequence]) -> None:
        """The driver that `held` these is no more: what it had not wholly written is void, what lies on disk is not."""
        self.kv = protocol.KVUsage()
        self._stuck = False
        for sequence in held:
            if sequence.id in self.leaving:
                del self.leaving[sequence.id]
                self._area.remove_unfinished(sequence.id)
                sequence.block_reasons.discard(SWAPPING)

    def forget(self, sequence: Sequence) -> None:
        """It is over."""
        if isinstance(sequence, Generation):
            if sequence.id in self.leaving:
                del self.leaving[sequence.id]
                self._area.remove_unfinished(sequence.id)
            self._drop_file(sequence)

    def served(self, seconds: float) -> None:
        """A sequence held a slot for so long."""
        self._service = _smoothed(self._service, seconds)

    # ---- inside

    def _parked(self, generations: list[Generation]) -> list[Candidate]:
        """The candidates among those that the driver knows."""
        places = {sequence.id: place for place, sequence in enumerate(self._leases.queue, 1)}
        now, token_bytes = self._clock(), max(self._footprint.token_bytes, 1)
        parked = []
        for sequence in generations:
            if sequence.state == RUNNING or not sequence.swappable:
                continue
            if sequence.state == QUEUED:
                wait = places.get(sequence.id, 1) * self._service / max(self._leases.count, 1)
            else:
                # Who has waited for long is likely to wait as long again.
                wait = max(now - sequence.since, PATIENCE)
            parked.append(Candidate(sequence, sequence.length * token_bytes, wait))
        return parked

    def _refused(self, sequence: Generation, why: str) -> None:
        log.error("cannot swap out", model=self._model, sequence=sequence.id, error=why)
        self.refusal = why
        self._refused_until = self._clock() + RETRY

    def _drop_file(self, sequence: Generation) -> None:
        if sequence.file:
            sequence.file = ""
            self.swapped.discard(sequence.id)
            self._area.remove(sequence.id)


def _in_the_way(generations: list[Generation], count: int, moved: bool) -> list[Generation]:
    """The running sequence, if any, that has to make room for one of the `count` that wait for memory on their slots.

    It is the least urgent one, if the one that waits is more urgent, or if nothing moves at all.
    """
    running = [sequence for sequence in generations if sequence.state == RUNNING and not sequence.cancelled]
    waiting = [sequence for sequence in running if not sequence.has_kv]
    holding = [sequence for sequence in running if sequence.has_kv]
    if len(waiting) > count:
        return []  # some of these have memory, and read their prompts: who waits is not known yet
    if holding and waiting:
        victim, urgent = min(holding, key=_urgency), max(waiting, key=_urgency)
        return [victim] if victim.priority < urgent.priority or not moved else []
    return [min(holding, key=_urgency)] if len(holding) > 1 and not moved else []


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, -sequence.id


def _smoothed(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
