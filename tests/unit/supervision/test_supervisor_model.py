"""The supervisor against a model of which children should be alive, while they end, crash and are killed at random.

The model is that of Erlang/OTP ("Supervisor Behaviour"), with a pause before each restart that doubles.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc.codec import reveal
from ipc.errors import TooManyRestarts
from ipc.syscalls import Child, Kill, Names
from kernel.core.process import Process
from llmosd.context import Context
from tests.support.boot import UNWRITABLE, boot
from tests.support.virtual_time import VirtualTimeLoop

WITHIN, FIRST_PAUSE, LONGEST_PAUSE = 20.0, 1.0, 4.0
GAP = 0.01  # seconds between two things that the test does
HOW = st.sampled_from(["returns", "crashes", "is killed"])
KIND = st.sampled_from(["permanent", "permanent", "transient", "temporary"])
PICK = st.integers(0, 3)


class Model:
    """`alive` has the children that run, `due` the times of those that wait for a restart. The others are over."""

    def __init__(self, strategy: str, kinds: list[str], most: int) -> None:
        self.strategy, self.kinds, self.most = strategy, kinds, most
        self.alive = set(range(len(kinds)))
        self.due: dict[int, float] = {}
        self.restarts: deque[float] = deque()
        self.starts = [1] * len(kinds)
        self.given_up = False

    @property
    def runs(self) -> bool:
        return not self.given_up and bool(self.alive or self.due)

    def pass_time(self, now: float) -> None:
        for child in [child for child, when in self.due.items() if when <= now]:
            del self.due[child]
            self.alive.add(child)
            self.starts[child] += 1

    def end(self, ends: list[tuple[int, str]], now: float) -> None:
        """Let children end at the same moment, in this order. The supervisor handles one end after the other.

        If it restarts a group, the unhandled ends in that group are dropped.
        """
        self.alive -= {child for child, _ in ends}
        unhandled = list(ends)
        while unhandled and not self.given_up:
            child, how = unhandled.pop(0)
            kind = self.kinds[child]
            if kind == "permanent" or (kind == "transient" and how != "returns"):
                unhandled = self._restart(child, unhandled, now)

    def _restart(self, child: int, unhandled: list[tuple[int, str]], now: float) -> list[tuple[int, str]]:
        """Restart `child` with its group; the ends that are still unhandled."""
        while self.restarts and self.restarts[0] <= now - WITHIN:
            self.restarts.popleft()
        if len(self.restarts) >= self.most:
            self.given_up = True
            self.alive, self.due = set(), {}
            return []
        self.restarts.append(now)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (len(self.restarts) - 1))
        ended = {other for other, _ in unhandled}
        first = {"one_for_one": child, "one_for_all": 0, "rest_for_one": child}[self.strategy]
        last = child if self.strategy == "one_for_one" else len(self.kinds) - 1
        for other in range(first, last + 1):
            runs = other == child or other in self.alive or other in self.due or other in ended
            if runs or self.kinds[other] == "transient":
                self.alive.discard(other)
                self.due.pop(other, None)
                if self.kinds[other] != "temporary":
                    self.due[other] = now + pause
        return [(other, how) for other, how in unhandled if not first <= other <= last]


class Supervising(RuleBasedStateMachine):
    """Does the same to the children of the supervisor and to those of the model."""

    @initialize(
        strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
        kinds=st.lists(KIND, min_size=1, max_size=4),
        most=st.sampled_from([0, 1, 2, 5, 20]),
    )
    def begin(self, strategy: Any, kinds: list[Any], most: int) -> None:
        self.loop = VirtualTimeLoop()
        self.model = Model(strategy, kinds, most)
        self.now = 0.0
        self.starts = [0] * len(kinds)

        async def child(ctx: Context, number: int) -> int:
            self.starts[number] += 1
            if (await ctx.receive()).body == "crash":
                raise ValueError("as ordered")
            return number

        async def supervisor(ctx: Context) -> int:
            specs = [Child("child", {"number": n}, name=name_of(n), restart=kind) for n, kind in enumerate(kinds)]
            limits: Any = {"within": WITHIN, "backoff": FIRST_PAUSE, "max_backoff": LONGEST_PAUSE}
            try:
                return len(await ctx.supervise(specs, strategy=strategy, max_restarts=most, **limits))
            except TooManyRestarts:
                await asyncio.Event().wait()  # stays alive, so that its own end does not end its children
                raise

        async def begin() -> Process:
            self.system = boot(UNWRITABLE)
            self.system.restart_without_jitter()
            self.system.program(child)
            process = self.system.spawn(supervisor)
            await self.system.turns(20)
            self.began = self.loop.time()
            return process

        self.process = self.loop.run_until_complete(begin())

    # ---- what happens

    @precondition(lambda self: self.model.alive)
    @rule(pick=PICK, how=HOW)
    def a_child_ends(self, pick: int, how: str) -> None:
        alive = sorted(self.model.alive)
        self.end([(alive[pick % len(alive)], how)])

    @precondition(lambda self: len(self.model.alive) > 1)
    @rule(order=st.permutations(range(4)), how=HOW, too=HOW)
    def two_end_at_once(self, order: list[int], how: str, too: str) -> None:
        one, other = [child for child in order if child in self.model.alive][:2]
        self.end([(one, how), (other, too)])

    @precondition(lambda self: self.model.due)
    @rule()
    def those_due_are_started(self) -> None:
        self.wait(LONGEST_PAUSE)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)

    @precondition(lambda self: self.model.runs and sum(self.model.starts) > 8)
    @rule()
    def the_supervisor_is_killed(self) -> None:
        self.model.given_up = True
        self.model.alive, self.model.due = set(), {}
        self.loop.run_until_complete(self.system.call(Kill(self.process.pid)))

    def end(self, ends: list[tuple[int, str]]) -> None:
        ends = [(child, how) for child, how in ends if child in self.model.alive]
        processes = [self.child(child) for child, _ in ends]

        async def all_of_them() -> None:
            # A child ends when its thread has run: in the order in which the messages were sent.
            for process, (_, how) in zip(processes, ends, strict=True):
                if how == "is killed":
                    self.system.kernel.process_exit.end(process, "killed", "by the test")
                else:
                    self.system.kernel.messaging.notify(process, "order", "crash" if how == "crashes" else "return")

        self.loop.run_until_complete(all_of_them())
        self.model.end(ends, self.now)
        self.wait(GAP)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.model.pass_time(self.now)
        self.loop.run_until_complete(asyncio.sleep(self.began + self.now - self.loop.time()))

    def child(self, number: int) -> Process:
        return self.system.kernel.names.find(name_of(number))

    # ---- what holds

    @invariant()
    def those_live_that_should(self) -> None:
        rows = self.loop.run_until_complete(self.system.call(Names()))
        assert {row.name for row in rows} == {name_of(number) for number in self.model.alive}
        assert self.starts == self.model.starts
        alive = {process for process in self.system.table.alive.values() if not process.is_client}
        assert len(alive - {self.process}) == len(self.model.alive)

    @invariant()
    def it_answers_when_all_are_over(self) -> None:
        status = self.process.status
        if status is not None and status.reason == "done":
            assert reveal(status.value) == len(self.model.kinds)
            assert not self.model.runs
        elif status is None:
            assert self.model.runs or self.model.given_up

    def teardown(self) -> None:
        if hasattr(self, "process"):
            self.system.close()


def name_of(number: int) -> str:
    """The name of a child."""
    return f"child {number}"


TestSupervising = Supervising.TestCase
TestSupervising.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
