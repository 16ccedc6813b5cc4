"""A simulation: tasks make their calls, the daemon's slots and a policy say who runs, the engine lets the time pass.

Discrete events: time goes from one to the next, and everything that one brings about happens at once. Made by the
commands, the benches and tests. The same tasks, device and policy give the same run, to the last bit.
"""

from __future__ import annotations

from functools import partial
from heapq import heappop, heappush
from typing import Any, cast

from ipc.errors import InvalidWorkload
from kernel.models.leases import LeaseTable
from kernel.models.sequence import FINISHED, Sequence
from kernel.policy.group import PROMPT_WEIGHT, SchedulingGroup
from kernel.policy.policy import Policy
from llmosd.simulator.call import SimulatedCall
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.engine import SimulatedEngine
from llmosd.simulator.gaps import ServiceGap
from llmosd.simulator.outcome import DONE, ENDED, SHED, Run, TaskOutcome, outcome_of
from llmosd.simulator.paging import Paging
from llmosd.simulator.timeline import Timeline
from llmosd.simulator.workload import WorkloadTask, check

LEASE = 64  # tokens, the default of the daemon
LOOK = 8  # steps: time may have changed a policy's mind
MANY = 1 << 30  # steps
SUBMIT, DEADLINE, WRITTEN, RESTORED = 0, 1, 2, 3  # what an event is, in the order of those at one time


class _Progress:
    """How far a task has come. `left` counts, for each call, those that it still waits for."""

    __slots__ = ("calls", "critical_paths", "done", "finished", "followers", "group", "left", "live", "over")

    def __init__(self, task: WorkloadTask, group: SchedulingGroup) -> None:
        self.group = group
        self.left = [len(set(call.after)) for call in task.calls]
        self.followers: list[list[int]] = [[] for _ in task.calls]
        for place, call in enumerate(task.calls):
            for before in set(call.after):
                self.followers[before].append(place)
        self.critical_paths = [0.0] * len(task.calls)
        self.live: dict[int, SimulatedCall] = {}
        self.done = 0
        self.over = False
        self.finished: float | None = None


class Simulation:
    """Runs `tasks` on `slots` slots of `device` under `policy`, which must be a fresh one.

    `timeline`: keep what plots need. `look`: steps after which the policy is asked again while somebody waits; `MANY`
    for one that heeds neither time nor progress, such as fifo. Raises `InvalidWorkload`.
    """

    def __init__(
        self,
        tasks: list[WorkloadTask],
        device: DeviceModel,
        policy: Policy,
        slots: int,
        *,
        lease: int = LEASE,
        timeline: bool = False,
        look: int = LOOK,
    ) -> None:
        check(tasks)
        if slots < 1:
            raise InvalidWorkload(f"{slots} slots; there has to be one at least")
        self._tasks = tasks
        self._device = device
        self._policy = policy
        self._look = look
        self._timeline = Timeline(timeline)
        self._engine = SimulatedEngine(device, self._timeline, partial(self._schedule_swap, RESTORED))
        self._clock = 0.0
        self.leases = LeaseTable(slots, lease, policy, lambda: self._clock, self._engine.obey)
        self.leases.on_shed = cast("Any", self._shed)
        self._paging = Paging(device, self._engine, self.leases, partial(self._schedule_swap, WRITTEN))
        self._gap = ServiceGap({task.owner: task.weight for task in tasks})
        self._compared = self._gap.largest is not None
        self._progress = [
            _Progress(task, SchedulingGroup(number, task.owner, task.weight, self._end_of(task)))
            for number, task in enumerate(tasks)
        ]
        self._events: list[tuple[float, int, int, int, Any]] = []
        self._count = 0
        self._last_call = 0
        self._ended: list[SimulatedCall] = []

    def run(self) -> Run:
        """From the first arrival to the last completion."""
        for number, task in enumerate(self._tasks):
            for place, call in enumerate(task.calls):
                if not call.after:
                    self._schedule(task.arrival + call.wait, SUBMIT, number, place)
            if task.deadline is not None:
                self._schedule(task.arrival + task.deadline, DEADLINE, number, None)
        self._deliver()  # what is there at the start has come before any of it gets a slot
        self.leases.open()
        while self._events or self.leases.used or self.leases.waiting:
            self._deliver()
            if self._engine.idle:
                self._wait()
            else:
                self._advance()
        return Run(
            policy=self._policy.kind,
            slots=self.leases.count,
            device=self._device,
            calls=[outcome_of(call) for call in self._ended],
            tasks=[
                TaskOutcome(task, progress.finished, progress.group.service)
                for task, progress in zip(self._tasks, self._progress, strict=True)
            ],
            seconds=self._clock,
            busy=self._engine.busy,
            steps=self._engine.steps,
            swaps=self._paging.swaps,
            gap=self._gap.largest,
            intervals=self._timeline.intervals,
            samples=self._timeline.samples,
        )

    # ---- time

    def _deliver(self) -> None:
        """Everything that is due."""
        events = self._events
        if not events or events[0][0] > self._clock:
            return
        self._credit()
        while events and events[0][0] <= self._clock:
            time, kind, _, number, what = heappop(events)
            if kind == SUBMIT:
                self._submit(number, what, time)
            elif kind == DEADLINE:
                self._deadline(number)
            elif kind == WRITTEN:
                self._paging.done(what)
            else:
                self._engine.restored(what)
        self._note()

    def _wait(self) -> None:
        """Nothing can run before the next event."""
        self._paging.update()
        if not self._engine.idle:
            return
        while self._events and self._events[0][1] == DEADLINE and self._progress[self._events[0][3]].over:
            heappop(self._events)
        if not (self._events or self.leases.used or self.leases.waiting):
            return
        if not self._events:
            raise InvalidWorkload(
                f"{self.leases.waiting + self.leases.used} calls can never run: {self._paging.shortage()}"
            )
        self._clock = self._engine.now = max(self._events[0][0], self._clock)
        if self.leases.waiting:
            self.leases.reschedule()

    def _advance(self) -> None:
        """Let steps pass, and tell the slots what came of them."""
        engine = self._engine
        waiting = self.leases.waiting
        most = self._look if waiting else MANY
        if bounds := [
            call.grant - engine.made(call) + call.credited for call in engine.decoding.values() if call.grant
        ]:
            most = max(min(most, *bounds), 1)
        for call in engine.fresh:
            self._gap.served(call.group.owner, PROMPT_WEIGHT * call.prompt)
            self.leases.charge_prompt(cast("Sequence", call), call.prompt)
        engine.fresh.clear()
        until = self._events[0][0] if self._events else float("inf")
        stopped = engine.advance(until, most)
        self._clock = engine.now
        ended = [call for call in stopped if engine.made(call) >= call.tokens]
        for call in ended:
            call.grant = 0  # the end of its grant is no reason to ask the policy any more
            self._credit_one(call)
        if waiting and self._look < MANY:
            self._credit()
        elif bounds:
            for call in [
                call for call in engine.decoding.values() if 0 < call.grant <= engine.made(call) - call.credited
            ]:
                self._credit_one(call)
        for call in ended:
            self._finish(call, DONE)
        if self.leases.waiting:
            self._paging.update()
            self.leases.reschedule()
        self._note()

    def _schedule(self, time: float, kind: int, number: int, what: Any) -> None:
        self._count += 1
        heappush(self._events, (time, kind, self._count, number, what))

    def _schedule_swap(self, kind: int, time: float, call: SimulatedCall) -> None:
        self._schedule(time, kind, call.task, call)

    # ---- calls

    def _submit(self, number: int, place: int, time: float) -> None:
        progress, task = self._progress[number], self._tasks[number]
        if progress.over:
            return
        spec = task.calls[place]
        self._last_call += 1
        priority = task.priority if spec.priority is None else spec.priority
        call = SimulatedCall(
            self._last_call, number, place, spec, progress.group, priority, progress.critical_paths[place], time
        )
        self._paging.price(call)
        progress.live[call.id] = call
        self._engine.hold(call)
        self._gap.wants(task.owner, +1)
        self.leases.enqueue(cast("Sequence", call))

    def _credit(self) -> None:
        """Tell the slots of all tokens that were made."""
        steps = self._engine.steps
        for call in tuple(self._engine.decoding.values()):
            if call.made + steps - call.joined != call.credited or call.slot < 0:
                self._credit_one(call)

    def _credit_one(self, call: SimulatedCall) -> None:
        """Tell the slots what `call` has made since they heard of it last. They may take its slot for it."""
        # Who makes tokens has a slot, and who has lost it has them all in `made`.
        tokens = call.made - call.credited
        if call.slot >= 0 and call.id in self._engine.decoding:
            tokens += self._engine.steps - call.joined
        if tokens:
            call.credited += tokens
            if self._compared:
                self._gap.served(call.group.owner, tokens)
            self.leases.charge_tokens(cast("Sequence", call), tokens)

    def _finish(self, call: SimulatedCall, outcome: str) -> None:
        """`call` is over, one way or another."""
        call.end, call.outcome = self._clock, outcome
        task, progress = self._tasks[call.task], self._progress[call.task]
        self._gap.wants(task.owner, -1)
        self._paging.forget(call)
        self._engine.forget(call)
        call.state = FINISHED
        del progress.live[call.id]
        self._ended.append(call)
        self.leases.free(cast("Sequence", call))
        if outcome == DONE:
            self._follow(call, progress)

    def _follow(self, call: SimulatedCall, progress: _Progress) -> None:
        """What its task does now that `call` is done."""
        progress.done += 1
        path = call.critical_path + PROMPT_WEIGHT * call.prompt + call.tokens
        for place in progress.followers[call.place]:
            progress.critical_paths[place] = max(progress.critical_paths[place], path)
            progress.left[place] -= 1
            if not progress.left[place]:
                wait = self._tasks[call.task].calls[place].wait
                self._schedule(self._clock + wait, SUBMIT, call.task, place)
        if progress.done == len(progress.left):
            progress.over, progress.finished = True, self._clock

    def _shed(self, call: SimulatedCall) -> None:
        """The policy gives `call` up: its task fails."""
        self._give_up(call.task, SHED)

    def _deadline(self, number: int) -> None:
        if not self._progress[number].over:
            self._give_up(number, ENDED)

    def _give_up(self, number: int, outcome: str) -> None:
        progress = self._progress[number]
        progress.over = True
        for call in tuple(progress.live.values()):
            call.cancelled = True
            self.leases.withdraw(cast("Sequence", call))
            self._finish(call, outcome)

    @staticmethod
    def _end_of(task: WorkloadTask) -> float | None:
        return None if task.deadline is None else task.arrival + task.deadline

    def _note(self) -> None:
        self._timeline.sample(self._clock, self.leases.waiting, self.leases.used)
