"""Runs tasks in real time: the kernel's lease table and a policy over the simulated driver, on an event loop.

Used by the textbook for its column of measured values. It starts no process and no daemon.
"""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec

from ipc.syscalls import Sampling
from kernel.drivers import protocol
from kernel.drivers.simulated.device import SimulatedDevice
from kernel.models.leases import LeaseTable
from kernel.models.sequence import FINISHED, Sequence
from kernel.policy.group import SchedulingGroup
from kernel.policy.policy import Policy
from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.workload import WorkloadTask


class _LiveCall(SimulatedCall):
    """A call that the simulated driver can run."""

    __slots__ = ()

    def admission(self) -> protocol.ToDriver:
        return protocol.Admit(self.id, "prompt", Sampling(max_tokens=self.tokens), self.lease)


class _LiveModel:
    """Connects a lease table and the simulated driver, as a model runtime does. `done` is set when all calls ended."""

    def __init__(self, policy: Policy, slots: int, lease: int, device: DeviceModel) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: dict[int, _LiveCall] = {}
        self.done = asyncio.Event()
        self.device = SimulatedDevice(self._on_message)
        costs = {"step_seconds": device.step, "sequence_seconds": device.sequence, "prompt_seconds": device.prompt}
        self.device.handle(protocol.Load("", "", 1 << 20, costs))
        self.leases = LeaseTable(slots, lease, policy, self.loop.time, self.device.handle)

    def _on_message(self, message: protocol.FromDriver) -> None:
        match message:
            case protocol.Bundle(progress=progress):
                for made in progress:
                    if (call := self.calls.get(made.sequence)) is not None:
                        self.leases.charge_tokens(cast("Sequence", call), len(made.ids))
                self.leases.reschedule()
            case protocol.Parked(sequence=number) if number in self.calls:
                self.leases.parked(cast("Sequence", self.calls[number]))
            case protocol.Done(sequence=number):
                call = self.calls.pop(number)
                call.state = FINISHED
                self.leases.free(cast("Sequence", call))
                if not self.calls:
                    self.done.set()


def seconds(tasks: list[WorkloadTask], device: DeviceModel, policy: Policy, slots: int, lease: int) -> float:
    """The real seconds that the first call of each task takes, if all these calls are submitted together."""
    return asyncio.run(_run(tasks, device, policy, slots, lease))


async def _run(tasks: list[WorkloadTask], device: DeviceModel, policy: Policy, slots: int, lease: int) -> float:
    model = _LiveModel(policy, slots, lease, device)
    for number, task in enumerate(tasks, 1):
        spec = msgspec.structs.replace(task.calls[0], prompt=0)
        model.calls[number] = _LiveCall(number, number, 0, spec, SchedulingGroup(number), task.priority, 0.0, 0.0)
    stepping = asyncio.create_task(model.device.run())
    start = model.loop.time()
    for call in tuple(model.calls.values()):
        model.leases.enqueue(cast("Sequence", call))
    model.leases.open()
    await model.done.wait()
    took = model.loop.time() - start
    stepping.cancel()
    await asyncio.gather(stepping, return_exceptions=True)
    return took
