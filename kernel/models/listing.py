"""The rows of the listings: a model, its policy and its slots, read from its runtime. It never changes anything.

Called by the resource manager for the system calls `Models`, `SetPolicy`, `Slots` and `GetStats`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ipc.syscalls import ModelInfo, PolicyInfo, SlotInfo
from kernel.lib.machine import Machine
from kernel.models.state import READY, WAITING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kernel.models.leases import LeaseTable
    from kernel.models.runtime import ModelRuntime
    from kernel.models.sequence import Sequence

MAX_SEQUENCES = 1_000  # in a row of `llmos slots`; its counts cover all


def model_info(runtime: ModelRuntime, default: bool) -> ModelInfo:
    """The row of a model in `llmos models`."""
    spec, state, loader = runtime.spec, runtime.state, runtime.loader
    return ModelInfo(
        runtime.name, spec.driver, spec.path, default, state.name, state.detail, loader.context, loader.facts
    )


def policy_info(runtime: ModelRuntime) -> PolicyInfo:
    """The row of a model in `llmos policy`."""
    policy, reason = runtime.rules.policy, runtime.active.leases.policy.reason
    return PolicyInfo(
        runtime.name, policy.kind, policy.quantum, policy.aging, policy.weights, policy.starvation, reason
    )


def scheduling(runtime: ModelRuntime) -> str:
    """The policy of the model and its slot limit, with the reasons for both."""
    policy, rules = runtime.active.leases.policy, runtime.rules
    why = f" ({policy.reason})" if policy.reason else ""
    cause = f": {rules.limit_cause}" if rules.limit_cause else ""
    return f"{policy.kind}{why}; {rules.slot_limit} of {runtime.spec.slots} slots usable{cause}"


def _shown(sequences: Mapping[int, Sequence], slots: LeaseTable) -> tuple[Iterable[Sequence], dict[int, int]]:
    """The sequences that a row has room for, and by id the places in the queue of those that wait."""
    queue = slots.queue[:MAX_SEQUENCES]
    places = {sequence.id: place for place, sequence in enumerate(queue, 1)}
    if len(sequences) <= MAX_SEQUENCES:
        return sequences.values(), places
    return [*slots.running, *queue][:MAX_SEQUENCES], places


def _detail(runtime: ModelRuntime) -> str:
    """More about the state of the model: the turns that it waits for, and when it leaves, with the seconds left."""
    residency, state = runtime.residency, runtime.state
    if state.name == WAITING:
        return residency.why_waiting(runtime) or state.detail
    if state.name == READY:
        return state.detail or residency.why_leaving(runtime)
    return state.detail


def slot_info(runtime: ModelRuntime, machine: Machine) -> SlotInfo:
    """The row of a model in `llmos slots`."""
    active, state = runtime.active, runtime.state
    slots, pager = active.leases, active.pager
    shown, places = _shown(active.sequences, slots)
    now = asyncio.get_running_loop().time()
    return SlotInfo(
        model=runtime.name,
        state=state.name,
        detail=_detail(runtime),
        driver_pid=runtime.pid,
        slots=runtime.spec.slots,
        used=slots.used,
        queued=slots.waiting,
        tokens=active.tokens,
        tokens_per_second=round(active.rate, 1) if slots.used else 0.0,
        steps=active.steps,
        restarts=runtime.restarts,
        memory=machine.rss(runtime.pid) if runtime.pid else 0,
        sequences=[sequence.info(places.get(sequence.id, 0)) for sequence in shown],
        given=slots.count,
        cause=runtime.rules.limit_cause,
        kv_used=pager.kv.used,
        kv_cached=pager.kv.cached,
        kv_memory=runtime.footprint.kv_memory,
        kv_waiting=pager.kv.waiting,
        kv_disk=pager.kv.disk,
        prompt_tokens=pager.kv.asked,
        prompt_hits=pager.kv.hit,
        prompt_evicted=pager.kv.evicted,
        prompt_reread=pager.kv.reread,
        swapped=len(pager.swapped),
        swap_outs=pager.swap_outs,
        restores=pager.restores,
        recomputations=pager.recomputations,
        cores=len(runtime.cores or machine.cores) if state.ready_at is not None else 0,
        idle=0.0 if state.idle_since is None else now - state.idle_since,
        keep_alive=runtime.spec.keep_alive,
        policy=slots.policy.kind,
        policy_reason=slots.policy.reason,
        swap_refused=pager.swap_error,
    )
