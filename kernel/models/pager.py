"""The pager of one model: swaps whole sequences out to disk when KV memory is short.

Owned by the active sequences of a model, which pass on the driver's reports. The pager compares the cost of a swap with
the time that a sequence is likely to wait, and so chooses the sequences to swap out. It never reads or writes a swap
file; the driver does.
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

FULL = 0.9  # share of the KV memory above which the pager swaps out
TARGET = 0.8  # share of the KV memory down to which it swaps out
OVERHEAD = 0.01  # seconds of a swap besides writing and reading
DISK_RATE = 200e6  # bytes per second, until a swap is measured
SLOT_SECONDS = 5.0  # seconds for which a sequence holds a slot, until such a time is measured
LEAST_WAIT = 10.0  # seconds; a blocked sequence is expected to wait for at least so long
RETRY = 5.0  # seconds after a failed swap before the pager starts another
ROUNDING = 64  # tokens of KV memory that a driver may reserve beyond need
SMOOTHING = 0.7  # weight of the past in measured values

log = structlog.get_logger("kernel.models")


class Candidate(NamedTuple):
    """A sequence off its slot: the bytes of its KV, and the seconds that it is likely to wait."""

    sequence: Generation
    size: int
    wait: float


def choose(candidates: Iterable[Candidate], need: int, rate: float, *, forced: bool) -> list[Generation]:
    """Choose generations to swap out that free `need` bytes. The lowest cost per second of expected wait comes first.

    The cost is the time to write and to read the KV, at `rate` bytes per second. Unless `forced`, a generation
    is skipped if its expected wait is not longer than its cost.
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
    """`swapped` holds the ids of the sequences on disk.

    `swap_outs` counts the swaps to disk since the start, `restores` how often the driver read a sequence back, and
    `recomputations` how often it had to compute the KV of an interrupted sequence again.
    """

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
        self.swap_outs = self.restores = self.recomputations = 0
        self.kv = protocol.KVUsage()
        self.swapped: set[int] = set()
        self.swap_error = ""  # why the last swap failed; empty after a success
        self.swapping_out: dict[int, str] = {}  # the file of each sequence that is being swapped out
        self._model = model
        self._max_tokens = max_tokens  # of a generation whose call sets no bound
        self._area = area
        self._leases = leases
        self._footprint = footprint
        self._ask = ask
        self._clock = clock
        self._rate = DISK_RATE
        self._slot_seconds = SLOT_SECONDS
        self._retry_at = 0.0
        self._stuck = False  # the driver last reported that nothing can run without more KV memory

    def update(self, kv: protocol.KVUsage, steps: int, progressed: bool, sequences: Iterable[Sequence]) -> None:
        """Store the driver's report `kv`, and swap out if KV memory is short.

        `steps` is the number of steps that the driver made since its last report, `progressed` whether these made any
        token.
        """
        self.kv = kv
        self._stuck = not steps and kv.waiting > 0
        self._footprint.kv_used, self._footprint.kv_cached = kv.used, kv.cached
        granted = self._footprint.kv_memory
        if kv.waiting or (granted and kv.used > FULL * granted):
            self._page(kv.waiting, progressed, sequences)

    def stalled(self, sequences: Iterable[Sequence]) -> None:
        """Swap out for a silent driver: perhaps the sequences on slots wait for KV memory that others hold.

        If the driver's last report was that nothing can run, this is the next attempt to free KV memory.
        """
        self._page(self.kv.waiting if self._stuck else self._leases.used, not self._stuck, sequences)

    def _page(self, waiting: int, progressed: bool, sequences: Iterable[Sequence]) -> None:
        if self.swapping_out or self._clock() < self._retry_at:
            return
        known = [one for one in sequences if one.in_driver]
        generations = [one for one in known if isinstance(one, Generation)]
        forced = waiting > 0 and self._is_short(generations, has_queries=len(generations) < len(known))
        granted = self._footprint.kv_memory
        need = max(self.kv.used - int(TARGET * granted) if granted else 0, int(forced))
        chosen = choose(self._off_slots(generations), need, self._rate, forced=forced)
        if not chosen and forced:
            chosen = _running_victim(generations, waiting, progressed)
        elif not chosen and granted and self.kv.used > granted:  # the balancer has lowered the bound below the use
            chosen = _running_excess(generations, self.kv.used - granted, max(self._footprint.token_bytes, 1))
        for sequence in chosen:
            self.swap_out(sequence)

    def _is_short(self, generations: list[Generation], *, has_queries: bool) -> bool:
        """Whether a sequence on a slot waits because KV memory is short.

        The driver reports how many sequences wait, but not which, nor why: a process may have used up its quota
        (`kv_quota`, an option of the driver). So this infers the reason from sizes. Memory is short

        - while other sequences run: if not even the smallest waiting generation fits;
        - if nothing runs: if the largest waiting generation does not fit, because it holds up all sequences that were
          admitted after it;
        - if only queries can be waiting, whose size is unknown: if more than half of the memory is used;
        - if nothing runs and a query may be waiting: if any memory is used;
        - if the sizes of the memory or of a token are unknown: always.
        """
        granted, token_bytes = self._footprint.kv_memory, self._footprint.token_bytes
        if not granted or not token_bytes:
            return True
        waiting = [one for one in generations if one.state == RUNNING and not one.has_kv]
        if not waiting or (has_queries and self._stuck):  # queries may wait, and their size is unknown
            return self.kv.used > (0 if self._stuck else granted // 2)
        needs = [len(one.prompt_ids or ()) + (one.sampling.max_tokens or self._max_tokens) for one in waiting]
        need = max(needs) if self._stuck else min(needs)
        return self.kv.used + (need + ROUNDING) * token_bytes > granted

    def switch_cost(self, sequence: Generation, rate: float) -> float:
        """Tokens that the slot of `sequence` could make in the time of a swap out and in.

        All slots together make `rate` tokens per second. The cost is 0 while no sequence waits for KV memory, because
        the KV of a preempted sequence then stays in memory.
        """
        if not self.kv.waiting or not self._leases.used:
            return 0.0
        seconds = OVERHEAD + 2 * sequence.length * max(self._footprint.token_bytes, 1) / self._rate
        return seconds * rate / self._leases.used

    def swap_out(self, sequence: Generation) -> None:
        """Have the driver write the KV of `sequence` to disk and forget the sequence, which is blocked until then."""
        try:
            path = self._area.path(sequence.id)
        except OSError as error:
            self._swap_failed(sequence, f"{error.strerror}: {error.filename}")
            return
        self.swapping_out[sequence.id] = path
        self._leases.block(sequence, SWAPPING)
        self._ask(protocol.SwapOut(sequence.id, path))

    def swapped_out(self, sequence: Generation, message: protocol.SwappedOut) -> None:
        """The driver has swapped `sequence` out, or has failed to."""
        path = self.swapping_out.pop(sequence.id, "")
        if message.error is not None:
            self._swap_failed(sequence, message.error.message)
            self._area.remove(sequence.id)
        else:
            self.swap_outs += 1
            self.swap_error = ""
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
        """The driver has read the KV of `sequence` back, or computes it again."""
        if not message.recomputed:
            self.restores += 1
            sequence.recomputed = ""
        else:
            self.recomputations += 1
        if message.recomputed and not sequence.recomputed:  # otherwise the reason was logged already
            sequence.recomputed = message.why
            fields = {"model": self._model, "why": message.why, "tokens": len(sequence.ids)}
            log.warning("swapped KV lost, computing it again", sequence=sequence.id, pid=sequence.process.pid, **fields)
            event = "the swapped KV of a generation was lost and is computed again"
            sequence.process.write_log(Log(sequence.process.pid, time.time(), "warning", event, fields))
        self.drop_file(sequence)

    def driver_ended(self, held: Iterable[Sequence]) -> None:
        """The driver that held the sequences `held` is gone. Complete swap files stay; unfinished ones are removed."""
        self.kv = protocol.KVUsage()
        self._stuck = False
        for sequence in held:
            if sequence.id in self.swapping_out:
                del self.swapping_out[sequence.id]
                self._area.remove_unfinished(sequence.id)
                sequence.block_reasons.discard(SWAPPING)

    def forget(self, sequence: Sequence) -> None:
        """`sequence` has ended: remove its swap file."""
        if isinstance(sequence, Generation):
            if sequence.id in self.swapping_out:
                del self.swapping_out[sequence.id]
                self._area.remove_unfinished(sequence.id)
            self.drop_file(sequence)

    def drop_file(self, sequence: Generation) -> None:
        """Remove the swap file of `sequence`, if there is one."""
        if sequence.file:
            sequence.file = ""
            self.swapped.discard(sequence.id)
            self._area.remove(sequence.id)

    def add_slot_time(self, seconds: float) -> None:
        """A sequence held a slot for `seconds`, until its end."""
        self._slot_seconds = _smoothed(self._slot_seconds, seconds)

    # ---- inside

    def _off_slots(self, generations: list[Generation]) -> list[Candidate]:
        """The candidates among `generations`: those off their slots, parked or queued, that have KV in the driver."""
        places = {sequence.id: place for place, sequence in enumerate(self._leases.queue, 1)}
        now, token_bytes = self._clock(), max(self._footprint.token_bytes, 1)
        candidates = []
        for sequence in generations:
            if sequence.state == RUNNING or not sequence.swappable:
                continue
            if sequence.state == QUEUED:
                wait = places.get(sequence.id, 1) * self._slot_seconds / max(self._leases.count, 1)
            else:
                # A sequence that has waited for long is likely to wait as long again.
                wait = max(now - sequence.since, LEAST_WAIT)
            candidates.append(Candidate(sequence, sequence.length * token_bytes, wait))
        return candidates

    def _swap_failed(self, sequence: Generation, why: str) -> None:
        log.error("cannot swap out", model=self._model, sequence=sequence.id, error=why)
        self.swap_error = why
        self._retry_at = self._clock() + RETRY


def _running_victim(generations: list[Generation], count: int, progressed: bool) -> list[Generation]:
    """The running generation to swap out, if any. `count`: how many sequences hold a slot, but wait for KV memory.

    It is the least urgent of those that have KV, provided that a waiting one is more urgent or that no sequence makes
    progress.
    """
    running = [sequence for sequence in generations if sequence.state == RUNNING and not sequence.cancelled]
    waiting = [sequence for sequence in running if not sequence.has_kv]
    holding = [sequence for sequence in running if sequence.has_kv]
    if len(waiting) > count:
        return []  # some have KV memory already and are being prefilled; the kernel cannot tell which
    if holding and waiting:
        victim, urgent = min(holding, key=_urgency), max(waiting, key=_urgency)
        return [victim] if victim.priority < urgent.priority or not progressed else []
    return [min(holding, key=_urgency)] if len(holding) > 1 and not progressed else []


def _running_excess(generations: list[Generation], excess: int, token_bytes: int) -> list[Generation]:
    """The least urgent running generations whose KV takes `excess` bytes; all but one of those that have KV at most."""
    holding = sorted((one for one in generations if one.state == RUNNING and one.swappable), key=_urgency)
    chosen = []
    for sequence in holding[:-1]:
        if excess <= 0:
            break
        chosen.append(sequence)
        excess -= sequence.length * token_bytes
    return chosen


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, -sequence.id


def _smoothed(before: float, now: float) -> float:
    return SMOOTHING * before + (1 - SMOOTHING) * now
