"""A simulation: tasks make calls, the daemon's lease table and a policy choose which calls run, the engine runs them.

A discrete-event simulation: the clock jumps from event to event, and all events that are due at one time are delivered
before the policy decides. Experiments, the benches and tests use it. It never reads a real clock: the same tasks,
device and policy give the same run, to the last bit.
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
RESCHEDULE_STEPS = 8  # while calls wait, the policy decides again after so many steps, as time changes its choice
UNBOUNDED = 1 << 30  # steps
SUBMIT, DEADLINE, SWAPPED_OUT, SWAPPED_IN = 0, 1, 2, 3  # kinds of events, in the order of delivery at one time


class _TaskState:
    """The state of one task. `unfinished`: for each of its calls, how many calls must still end before it is made."""

    __slots__ = ("calls", "critical_paths", "dependents", "done", "ended", "finished", "group", "unfinished")

    def __init__(self, task: WorkloadTask, group: SchedulingGroup) -> None:
        self.group = group
        self.unfinished = [len(set(call.after)) for call in task.calls]
        self.dependents: list[list[int]] = [[] for _ in task.calls]
        for place, call in enumerate(task.calls):
            for before in set(call.after):
                self.dependents[before].append(place)
        self.critical_paths = [0.0] * len(task.calls)
        self.calls: dict[int, SimulatedCall] = {}  # by id; calls that have not ended
        self.done = 0  # calls that were completed
        self.ended = False  # all calls were completed, or the task was ended early
        self.finished: float | None = None  # when all calls were completed


class Simulation:
    """Runs `tasks` on `slots` slots of `device` under `policy`, which must not have been used before.

    `timeline`: record the data of the plots. `reschedule_steps`: while calls wait, ask the policy again after so many
    steps; `UNBOUNDED` for a policy that depends on neither time nor progress, such as fifo. Raises `InvalidWorkload`.
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
        reschedule_steps: int = RESCHEDULE_STEPS,
    ) -> None:
        check(tasks)
        if slots < 1:
            raise InvalidWorkload(f"{slots} slots; give at least one")
        self._tasks = tasks
        self._device = device
        self._policy = policy
        self._reschedule_steps = reschedule_steps
        self._timeline = Timeline(timeline)
        self._engine = SimulatedEngine(device, self._timeline, partial(self._schedule_swap, SWAPPED_IN))
        self._clock = 0.0
        self.leases = LeaseTable(slots, lease, policy, lambda: self._clock, self._engine.handle)
        self.leases.on_shed = cast("Any", self._on_shed)
        self._paging = Paging(device, self._engine, self.leases, partial(self._schedule_swap, SWAPPED_OUT))
        self._gap = ServiceGap({task.owner: task.weight for task in tasks})
        self._measures_gap = self._gap.largest is not None
        self._states = [
            _TaskState(task, SchedulingGroup(number, task.owner, task.weight, self._deadline_of(task)))
            for number, task in enumerate(tasks)
        ]
        self._events: list[tuple[float, int, int, int, Any]] = []  # time, kind, number, task, call or its place
        self._event_count = 0
        self._last_call_id = 0
        self._ended: list[SimulatedCall] = []

    def run(self) -> Run:
        """Simulate from the first arrival to the last completion."""
        for number, task in enumerate(self._tasks):
            for place, call in enumerate(task.calls):
                if not call.after:
                    self._schedule(task.arrival + call.wait, SUBMIT, number, place)
            if task.deadline is not None:
                self._schedule(task.arrival + task.deadline, DEADLINE, number, None)
        self._deliver_events()  # so calls that are due at the start all arrive before one of them gets a slot
        self.leases.open()
        while self._events or self.leases.used or self.leases.waiting:
            self._deliver_events()
            if self._engine.idle:
                self._jump()
            else:
                self._advance()
        return Run(
            policy=self._policy.kind,
            slots=self.leases.count,
            device=self._device,
            calls=[outcome_of(call) for call in self._ended],
            tasks=[
                TaskOutcome(task, state.finished, state.group.service)
                for task, state in zip(self._tasks, self._states, strict=True)
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

    def _deliver_events(self) -> None:
        """Deliver all events that are due."""
        events = self._events
        if not events or events[0][0] > self._clock:
            return
        self._charge_all()
        while events and events[0][0] <= self._clock:
            time, kind, _, task, subject = heappop(events)
            if kind == SUBMIT:
                self._submit(task, subject, time)
            elif kind == DEADLINE:
                self._on_deadline(task)
            elif kind == SWAPPED_OUT:
                self._paging.swapped_out(subject)
            else:
                self._engine.swapped_in(subject)
        self._sample()

    def _jump(self) -> None:
        """No call is in the batch: move the clock to the next event."""
        self._paging.update()
        if not self._engine.idle:
            return
        while self._events and self._events[0][1] == DEADLINE and self._states[self._events[0][3]].ended:
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
        """Let the engine do steps, then charge the tokens that it made and finish the calls that ended."""
        engine = self._engine
        waiting = self.leases.waiting
        most = self._reschedule_steps if waiting else UNBOUNDED
        if grants_left := [
            call.grant - engine.tokens_made(call) + call.charged for call in engine.decoding.values() if call.grant
        ]:
            most = max(min(most, *grants_left), 1)
        for call in engine.newly_started:
            self._gap.served(call.group.owner, PROMPT_WEIGHT * call.prompt)
            self.leases.charge_prompt(cast("Sequence", call), call.prompt)
        engine.newly_started.clear()
        until = self._events[0][0] if self._events else float("inf")
        stopped = engine.advance(until, most)
        self._clock = engine.now
        ended = [call for call in stopped if engine.tokens_made(call) >= call.tokens]
        for call in ended:
            call.grant = 0  # so that the policy does not decide about a call that has ended
            self._charge(call)
        if waiting and self._reschedule_steps < UNBOUNDED:
            self._charge_all()
        elif grants_left:
            for call in [
                call for call in engine.decoding.values() if 0 < call.grant <= engine.tokens_made(call) - call.charged
            ]:
                self._charge(call)
        for call in ended:
            self._finish(call, DONE)
        if self.leases.waiting:
            self._paging.update()
            self.leases.reschedule()
        self._sample()

    def _schedule(self, time: float, kind: int, task: int, subject: Any) -> None:
        self._event_count += 1
        heappush(self._events, (time, kind, self._event_count, task, subject))

    def _schedule_swap(self, kind: int, time: float, call: SimulatedCall) -> None:
        self._schedule(time, kind, call.task, call)

    def _sample(self) -> None:
        self._timeline.sample(self._clock, self.leases.waiting, self.leases.used)

    # ---- calls

    def _submit(self, number: int, place: int, time: float) -> None:
        state, task = self._states[number], self._tasks[number]
        if state.ended:
            return
        spec = task.calls[place]
        self._last_call_id += 1
        priority = task.priority if spec.priority is None else spec.priority
        call = SimulatedCall(
            self._last_call_id, number, place, spec, state.group, priority, state.critical_paths[place], time
        )
        self._paging.set_switch_cost(call)
        state.calls[call.id] = call
        self._engine.add(call)
        self._gap.wants(task.owner, +1)
        self.leases.enqueue(cast("Sequence", call))

    def _charge_all(self) -> None:
        """Charge all tokens that were made and not charged yet."""
        steps = self._engine.steps
        for call in tuple(self._engine.decoding.values()):
            if call.made + steps - call.joined_step != call.charged or call.slot < 0:
                self._charge(call)

    def _charge(self, call: SimulatedCall) -> None:
        """Charge the tokens that `call` made since it was last charged. The call may lose its slot by this."""
        # A call in the batch has a slot. If a call has lost its slot, `made` includes all its tokens.
        tokens = call.made - call.charged
        if call.slot >= 0 and call.id in self._engine.decoding:
            tokens += self._engine.steps - call.joined_step
        if tokens:
            call.charged += tokens
            if self._measures_gap:
                self._gap.served(call.group.owner, tokens)
            self.leases.charge_tokens(cast("Sequence", call), tokens)

    def _finish(self, call: SimulatedCall, outcome: str) -> None:
        """`call` has ended with this outcome."""
        call.end, call.outcome = self._clock, outcome
        task, state = self._tasks[call.task], self._states[call.task]
        self._gap.wants(task.owner, -1)
        self._paging.remove(call)
        self._engine.remove(call)
        call.state = FINISHED
        del state.calls[call.id]
        self._ended.append(call)
        self.leases.free(cast("Sequence", call))
        if outcome == DONE:
            self._schedule_dependents(call, state)

    def _schedule_dependents(self, call: SimulatedCall, state: _TaskState) -> None:
        """Schedule the calls for which `call` was the last to wait for; finish the task if it was the last call."""
        state.done += 1
        path = call.critical_path + PROMPT_WEIGHT * call.prompt + call.tokens
        for place in state.dependents[call.place]:
            state.critical_paths[place] = max(state.critical_paths[place], path)
            state.unfinished[place] -= 1
            if not state.unfinished[place]:
                wait = self._tasks[call.task].calls[place].wait
                self._schedule(self._clock + wait, SUBMIT, call.task, place)
        if state.done == len(state.unfinished):
            state.ended, state.finished = True, self._clock

    def _on_shed(self, call: SimulatedCall) -> None:
        """The policy sheds `call`: its task fails."""
        self._end_task(call.task, SHED)

    def _on_deadline(self, task: int) -> None:
        if not self._states[task].ended:
            self._end_task(task, ENDED)

    def _end_task(self, task: int, outcome: str) -> None:
        state = self._states[task]
        state.ended = True
        for call in tuple(state.calls.values()):
            call.cancelled = True
            self.leases.withdraw(cast("Sequence", call))
            self._finish(call, outcome)

    @staticmethod
    def _deadline_of(task: WorkloadTask) -> float | None:
        return None if task.deadline is None else task.arrival + task.deadline
