"""The wait of a thread in a model call: its stage, and who and what stands between the call and its next token.

`calls.py` makes one for each call. It reads the runtime of the model and its policy; it never changes either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as List
from typing import cast

import msgspec

from ipc.syscalls import Participant, WaitFacts
from kernel.core.plain_wait import MAX_LISTED, named
from kernel.core.process import Thread
from kernel.core.reader_wait import reader_facts
from kernel.lib.units import show_size
from kernel.lib.wording import counted, listed, ordinal, quoted, show_seconds, verb
from kernel.models.generation import Generation
from kernel.models.leases import READER, SWAPPING
from kernel.models.runtime import ModelRuntime
from kernel.models.sequence import QUEUED, RUNNING, Sequence
from kernel.models.state import LOADING, READY, RESTARTING, UNLOADING, WAITING

QUEUE, LOAD, GENERATE = "queued", "loading", "generating"  # the stages


class ModelCallWait:
    """The wait for `sequences`, the samples of one call or its only query, on the model of `runtime`."""

    __slots__ = ("_runtime", "_sequences")

    def __init__(self, sequences: List[Sequence], runtime: ModelRuntime) -> None:
        self._sequences = sequences
        self._runtime = runtime

    @property
    def stage(self) -> str:
        """The stage of the call; empty while the call is blocked, such as by a reader that is behind."""
        sequence = self._first()
        if sequence.state == RUNNING and not self._needs_memory(sequence):
            return GENERATE
        if sequence.state in (RUNNING, QUEUED):
            return QUEUE if self._runtime.state.name == READY else LOAD
        return ""

    def __str__(self) -> str:
        sequence, stage, name = self._first(), self.stage, self._runtime.name
        if stage == GENERATE:
            return self._made() if isinstance(sequence, Generation) else "scores or vectors"
        if stage == LOAD:
            state = self._runtime.state
            percent = state.detail.rpartition(" ")[2]
            return f"{name} {percent if percent.endswith('%') else _PHASES.get(state.name, state.name)}"
        if stage == QUEUE:
            if sequence.state == RUNNING:
                return f"KV memory of {name}"
            return f"{ordinal(self._place(sequence))} of {self._runtime.active.leases.waiting} for {name}"
        if READER in sequence.block_reasons:
            return "reader of the task"
        return f"swapping {name}" if SWAPPING in sequence.block_reasons else f"{name}: {sequence.state}"

    def ended_by(self) -> None:
        """None: a driver ends the wait."""

    def explain(self, thread: Thread) -> WaitFacts:
        sequence, stage = self._first(), self.stage
        if stage == GENERATE:
            facts = self._generating(sequence)
        elif stage == LOAD:
            facts = self._waiting_for_memory() if self._runtime.state.name == WAITING else self._loading()
        elif stage == QUEUE:
            facts = self._needing_memory() if sequence.state == RUNNING else self._queued(sequence)
        elif READER in sequence.block_reasons and sequence.process.stream is not None:
            doing = f"waiting with its model call on {self._runtime.name} for the reader of its tokens"
            facts = reader_facts(sequence.process.stream, doing)
        else:
            facts = self._blocked(sequence)
        now = asyncio.get_running_loop().time()
        return facts if facts.seconds is not None else msgspec.structs.replace(facts, seconds=now - sequence.since)

    # ---- the stages

    def _generating(self, sequence: Sequence) -> WaitFacts:
        name = self._runtime.name
        ends = "the model has answered"
        if isinstance(sequence, Generation):
            bound = sequence.sampling.max_tokens or self._runtime.spec.max_tokens
            left = max(bound - len(sequence.ids), 0)
            ends = f"the reply ends, after {counted(left, 'more token')} at most"
            allowed = self._runtime.active.tokens_left(sequence)
            if allowed is not None and allowed < left:
                ends = f"the reply ends, or fails after {counted(allowed, 'more token')} at the limit of tokens"
        made = f" ({self._made()} so far)" if isinstance(sequence, Generation) else ""
        return WaitFacts(kind=GENERATE, doing=f"generating on model {name}{made}", ends=ends, next=self._turn(sequence))

    def _turn(self, sequence: Sequence) -> str:
        """The next decision of the policy on the slot of `sequence`; empty if no call waits for a slot."""
        leases = self._runtime.active.leases
        if not (queue := leases.queue):
            return ""
        first = queue[0].process
        outlook = leases.policy.outlook(queue[0], asyncio.get_running_loop().time())
        if outlook.yields is not sequence:
            return f"For now, the policy {leases.policy.kind} leaves it its slot"
        after = f"after {counted(outlook.tokens, 'more token')}" if outlook.tokens else "now"
        return (
            f"The policy {leases.policy.kind} gives its slot to process {first.pid} ({quoted(first.program)}) {after}"
        )

    def _queued(self, sequence: Sequence) -> WaitFacts:
        runtime, leases = self._runtime, self._runtime.active.leases
        queue, running = leases.queue, leases.running
        place = queue.index(sequence) + 1 if sequence in queue else 0
        cause = f", limited to {leases.count} of {runtime.spec.slots}: {runtime.rules.limit_cause}"
        return WaitFacts(
            kind="queue",
            doing=f"queued for a slot of model {runtime.name}",
            place=place,
            line=len(queue),
            ahead=named(other.process for other in queue[: max(place - 1, 0)]),
            ahead_count=max(place - 1, 0),
            held="The slots are held by",
            holders=[_participant(one) for one in running[:MAX_LISTED]],
            holder_count=len(running),
            state=f"{leases.used} of {counted(leases.count, 'slot')} {verb(leases.used, 'is', 'are')} in use"
            + (cause if runtime.rules.limit_cause else ""),
            ends="the policy gives it a slot",
            next=self._next(sequence, place) if place else "",
        )

    def _next(self, sequence: Sequence, place: int) -> str:
        policy = self._runtime.active.leases.policy
        outlook = policy.outlook(sequence, asyncio.get_running_loop().time())
        ahead = f"{counted(place - 1, 'call')} {verb(place - 1, 'gets', 'get')} a slot before this one"
        turn = "This call gets the next free slot" if place == 1 else ahead
        reason = f" ({policy.reason})" if policy.reason else ""
        parts = [f"The policy {policy.kind}{reason} {outlook.rule}", turn]
        if outlook.yields is not None:
            process = cast("Sequence", outlook.yields).process
            after = f"after {counted(outlook.tokens, 'more token')}" if outlook.tokens else "now"
            parts.append(f"Process {process.pid} ({quoted(process.program)}) has to give up its slot {after}")
        return ". ".join(parts)

    def _loading(self) -> WaitFacts:
        runtime, state = self._runtime, self._runtime.state
        now = asyncio.get_running_loop().time()
        slots, calls = runtime.active.leases.count, runtime.active.leases.waiting
        usual = runtime.footprint.load_seconds
        doing = f"waiting for model {runtime.name}, which is {_PHASES.get(state.name, state.name)}"
        last = f"the last load took {show_seconds(usual)}" if usual is not None else "the model was never loaded before"
        loads = state.name in (LOADING, RESTARTING)
        return WaitFacts(
            kind="loading",
            doing=f"{doing} ({state.detail})" if state.detail else doing,
            state=f"The load began {show_seconds(now - state.load_began)} ago; {last}"
            if loads and state.load_began is not None
            else last,
            ends=f"the model is loaded, which may take {show_seconds(runtime.spec.load_timeout)} at most"
            if loads
            else "the model is loaded again",
            next=f"The policy {runtime.active.leases.policy.kind} then gives out {counted(slots, 'slot')}, for which "
            f"{counted(calls, 'call')} {verb(calls, 'waits', 'wait')}",
        )

    def _waiting_for_memory(self) -> WaitFacts:
        runtime, residency = self._runtime, self._runtime.residency
        residents = [other for other in residency.residents() if other is not runtime]
        sizes = [f"{other.name} ({show_size(other.footprint.minimum)})" for other in residents[:MAX_LISTED]]
        need, room = runtime.footprint.minimum, residency.room
        now = asyncio.get_running_loop().time()
        holders = [one for other in residents for one in cast("ModelRuntime", other).active.leases.running]
        due = residency.due_at
        reason = (residency.why_waiting(runtime) or runtime.state.detail).removeprefix("for memory: ")
        reason = f"model {runtime.name} {reason}" if reason.startswith("waits for ") else reason
        reason = f"the daemon is {reason}" if reason.startswith("unloading ") else reason
        again = "" if due is None else f"; the daemon decides again in {show_seconds(due - now)} at the latest"
        taken = f"; in memory: {listed(sizes, len(residents))}" if sizes else ""
        return WaitFacts(
            kind="memory",
            doing=f"waiting for memory in which to load model {runtime.name}",
            held="The models in memory work for" if holders else "",
            holders=[_participant(one) for one in holders[:MAX_LISTED]],
            holder_count=len(holders),
            state=f"The model needs {show_size(need)}, and {show_size(max(room, 0))} of "
            f"{show_size(residency.budget)} are free{taken}",
            ends="the model fits",
            next=f"{reason}{again}",
        )

    def _needing_memory(self) -> WaitFacts:
        """The sequence has a slot, but the driver has no KV memory for it."""
        runtime, active = self._runtime, self._runtime.active
        footprint, pager = runtime.footprint, active.pager
        holding = [one for one in active.sequences.values() if isinstance(one, Generation) and one.swappable]
        holding.sort(key=lambda one: -one.length)
        size = max(footprint.token_bytes, 1)
        error = f"; the last swap to disk failed: {pager.swap_error}" if pager.swap_error else ""
        quota = runtime.spec.options.get("kv_quota")
        bound = f"; one process may use {show_size(quota)} at most" if isinstance(quota, int) else ""
        count = len(pager.swapping_out)
        swapping = f"; {counted(count, 'call')} {verb(count, 'is', 'are')} being written to disk now" if count else ""
        return WaitFacts(
            kind="memory",
            doing=f"waiting for KV memory of model {runtime.name}, while it holds a slot",
            held="The KV memory is held by" if holding else "",
            holders=[
                Participant(one.process.pid, one.process.program, show_size(one.length * size))
                for one in holding[:MAX_LISTED]
            ],
            holder_count=len(holding),
            state=f"{show_size(pager.kv.used)} of {show_size(footprint.kv_memory)} are in use, and "
            f"{counted(pager.kv.waiting, 'call')} {verb(pager.kv.waiting, 'waits', 'wait')} for memory{bound}",
            ends="another call ends or is swapped out to disk",
            next="The pager swaps out calls that are off their slots; it takes memory from a call on a slot only if "
            f"that call is less urgent, or if no call makes progress{swapping}{error}",
        )

    def _blocked(self, sequence: Sequence) -> WaitFacts:
        swapping = SWAPPING in sequence.block_reasons
        reasons = ", ".join(sorted(sequence.block_reasons)) or "its slot is being freed"
        return WaitFacts(
            kind="swapping" if swapping else "queue",
            doing=f"waiting with its model call on {self._runtime.name} off the slots ({reasons})",
            state="Its KV is being written to disk, because KV memory is short" if swapping else "",
            ends="its KV is on disk, and it queues for a slot again" if swapping else "the reason is gone",
        )

    # ---- inside

    def _first(self) -> Sequence:
        """The most active of the sequences that have not finished; the last one if all have."""
        order = (RUNNING, QUEUED)
        waiting = [one for one in self._sequences if not one.finished]
        return min(waiting or self._sequences[-1:], key=lambda one: order.index(one.state) if one.state in order else 2)

    def _needs_memory(self, sequence: Sequence) -> bool:
        """Whether the driver has no KV memory for `sequence`, which has a slot.

        The driver reports how many sequences wait for KV memory, but not which. So this is certain only if all that
        have none on a slot wait.
        """
        if not isinstance(sequence, Generation) or sequence.has_kv:
            return False
        lacking = [one for one in self._runtime.active.leases.running if isinstance(one, Generation) and not one.has_kv]
        return 0 < len(lacking) <= self._runtime.active.pager.kv.waiting

    def _place(self, sequence: Sequence) -> int:
        return self._runtime.active.place(sequence)

    def _made(self) -> str:
        generations = [one for one in self._sequences if isinstance(one, Generation)]
        return counted(sum(len(one.ids) for one in generations), "token")


_PHASES = {WAITING: "waiting for memory", UNLOADING: "being unloaded"}  # the other states are words already


def _participant(sequence: Sequence) -> Participant:
    made = counted(len(sequence.ids), "token") if isinstance(sequence, Generation) else ""
    return Participant(sequence.process.pid, sequence.process.program, made)
