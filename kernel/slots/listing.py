"""The row of a model in the listing of slots, from what its runtime and its workload know. It changes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ipc.syscalls import SlotInfo
from kernel.machine import Machine
from kernel.slots.workload import Workload

if TYPE_CHECKING:
    from kernel.slots.runtime import ModelRuntime


def slot_info(runtime: ModelRuntime, work: Workload, restarts: int, machine: Machine) -> SlotInfo:
    """What `llmos slots` shows of `runtime`."""
    slots, pager = work.slots, work.pager
    places = {sequence.id: place for place, sequence in enumerate(slots.queue, 1)}
    now = asyncio.get_running_loop().time()
    return SlotInfo(
        model=runtime.name,
        state=runtime.state,
        detail=runtime.detail,
        driver_pid=runtime.pid,
        slots=runtime.spec.slots,
        used=slots.used,
        queued=slots.waiting,
        tokens=work.tokens,
        tokens_per_second=round(work.rate, 1) if slots.used else 0.0,
        steps=work.steps,
        restarts=restarts,
        memory=machine.resident(runtime.pid) if runtime.pid else 0,
        sequences=[sequence.info(places.get(sequence.id, 0)) for sequence in work.sequences.values()],
        given=slots.count,
        cause=runtime.cause,
        kv_used=pager.kv.used,
        kv_cached=pager.kv.cached,
        kv_memory=runtime.footprint.kv_memory,
        kv_waiting=pager.kv.waiting,
        swapped=len(pager.swapped),
        swap_outs=pager.outs,
        restores=pager.restores,
        recomputations=pager.recomputations,
        cores=len(runtime.cores or machine.cores) if runtime.ready_at is not None else 0,
        idle=0.0 if runtime.idle_since is None else now - runtime.idle_since,
        keep_alive=runtime.spec.keep_alive,
        policy=slots.policy.kind,
        policy_reason=slots.policy.reason,
        swap_refused=pager.refusal,
    )
