"""The mailbox of a process against plain lists: its messages, the line of senders, and the line of receivers.

Every step goes through the message subsystem, so the model includes deadlines, refusals and dead letters. Each step has
ended before the next begins: `test_interleavings` tests the time between the wake-up of a thread and its next step.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc.errors import LlmosError
from ipc.messages import Message
from ipc.syscalls import PeekMailbox, Receive, Send
from kernel.core.mailbox import CONTROL
from kernel.core.process import Thread
from tests.support.agents import idle
from tests.support.boot import UNWRITABLE, boot
from tests.support.virtual_time import VirtualTimeLoop

KINDS = st.sampled_from(["x", "y"])
PRIORITIES = st.sampled_from([0, 0, 0, 5, -5])
LIFETIMES = st.sampled_from([None, None, 0.0, 1.25, 3.25])  # never over at the same time as a timeout
TIMEOUTS = st.sampled_from([None, None, 0.0, 2.0])
PICK = st.integers(0, 9)
FULL, ENDED, CANCELLED, TIMED_OUT = "MailboxFull", "UnknownProcess", "CancelledError", "TimedOut"


def _third(message: Message) -> bool:
    return bool(message.body % 3 == 0)


ONE_THING = st.one_of(
    st.fixed_dictionaries({"type": KINDS}),
    st.fixed_dictionaries({"sender": st.integers(0, 1)}),
    st.fixed_dictionaries({"correlation": st.integers(0, 1)}),
    st.just({"where": _third}),
)
SELECTIONS = st.one_of(
    st.just({}), st.just({}), ONE_THING, st.builds(lambda one, other: one | other, ONE_THING, ONE_THING)
)


class Letter:
    """A message of the model, by the number that is its body."""

    def __init__(self, number: int, kind: str, sender: int, priority: int, correlation: int, deadline: float) -> None:
        self.body = number
        self.type = kind
        self.sender = sender
        self.priority = priority
        self.correlation = correlation
        self.deadline = deadline


class Model:
    """`box` in the order of arrival, `line` of letters for which there was no room, `receivers` in their order.

    `arriving` are letters from the line with a reserved place. They take it at the end of the present step.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.now = 0.0
        self.box: list[Letter] = []
        self.line: list[Letter] = []
        self.arriving: list[Letter] = []
        self.receivers: list[tuple[int, dict[str, Any], float]] = []  # number, wanted heading, deadline
        self.outcome: dict[int, Any] = {}  # of sends and receives, by number
        self.buried: list[int] = []

    @property
    def ordered(self) -> list[Letter]:
        return sorted(self.box, key=lambda letter: -letter.priority)  # stable

    @property
    def taken(self) -> int:
        return sum(letter.priority != CONTROL for letter in self.box) + len(self.arriving)

    def send(self, letter: Letter, *, wait: bool) -> None:
        if self.taken >= self.capacity:
            for void in [letter for letter in self.ordered if letter.deadline <= self.now]:
                self.bury(void)
        if self.taken < self.capacity:
            self.put(letter)
        elif wait:
            self.line.append(letter)
        else:
            self.outcome[letter.body] = FULL
        self.settle()

    def notify(self, letter: Letter) -> None:
        """Put a letter of the kernel."""
        self.put(letter)
        self.settle()

    def take(self, number: int, wanted: dict[str, Any], timeout: float | None) -> None:
        """Begin a receive."""
        if not self.receive(number, wanted):
            if timeout == 0:
                self.outcome[number] = TIMED_OUT
            else:
                self.receivers.append((number, wanted, float("inf") if timeout is None else self.now + timeout))
        self.settle()

    def settle(self) -> None:
        while self.arriving:
            self.put(self.arriving.pop(0))

    def put(self, letter: Letter) -> None:
        self.box.append(letter)
        self.outcome[letter.body] = "sent"
        for receiver in list(self.receivers):
            number, wanted, until = receiver
            if _matches(wanted, letter):
                self.receivers.remove(receiver)
                if not self.receive(number, wanted):
                    self.receivers.append((number, wanted, until))  # its letter is void, so it waits again
                return

    def receive(self, number: int, wanted: dict[str, Any]) -> bool:
        for letter in self.ordered:
            if _matches(wanted, letter):
                if letter.deadline > self.now:
                    self.outcome[number] = letter.body
                    self.leave(letter)
                    return True
                self.bury(letter)
        return False

    def bury(self, letter: Letter) -> None:
        self.buried.append(letter.body)
        self.leave(letter)

    def leave(self, letter: Letter) -> None:
        self.box.remove(letter)
        if self.line and self.taken < self.capacity:
            self.arriving.append(self.line.pop(0))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.next_time()) <= end:
            self.now = max(self.now, due)
            for receiver in [receiver for receiver in self.receivers if receiver[2] <= self.now]:
                self.receivers.remove(receiver)
                if not self.receive(receiver[0], receiver[1]):
                    self.outcome[receiver[0]] = TIMED_OUT
            if self.line:
                for void in [letter for letter in self.ordered if letter.deadline <= self.now]:
                    self.bury(void)
            self.settle()
        self.now = end

    def next_time(self) -> float:
        """When a receiver times out, or a letter expires for whose place another waits."""
        deadlines = [letter.deadline for letter in self.box] if self.line else []
        return min([*deadlines, *(until for _, _, until in self.receivers)], default=float("inf"))

    def close(self) -> None:
        self.buried += [letter.body for letter in self.ordered]
        for letter in self.line:
            self.outcome[letter.body] = ENDED
        for number, _, _ in self.receivers:
            self.outcome[number] = CANCELLED
        self.box, self.line, self.receivers = [], [], []


def _matches(wanted: dict[str, Any], letter: Any) -> bool:
    return all(value(letter) if name == "where" else getattr(letter, name) == value for name, value in wanted.items())


class MailboxOfAProcess(RuleBasedStateMachine):
    """Two senders, and one recipient with any number of receiving threads."""

    @initialize(capacity=st.integers(1, 3))
    def boot(self, capacity: int) -> None:
        self.loop = VirtualTimeLoop()
        self.model = Model(capacity)
        self.threads: dict[int, Thread] = {}
        self.last = 0
        self.closed = False

        async def begin() -> None:
            self.system = boot(UNWRITABLE)
            name = self.system.program(idle)
            self.senders = [self.system.spawn(name) for _ in range(2)]
            self.target = self.system.spawn(name)
            self.box = self.target.open_mailbox()
            self.box.capacity = capacity
            dead_letters = self.system.kernel.messaging.dead_letters
            bury = dead_letters.bury
            self.buried: list[int] = []

            def noted(message: Message, reason: str) -> None:
                self.buried.append(message.body)
                bury(message, reason)

            dead_letters.bury = noted  # type: ignore[method-assign]
            await self.system.turns(20)

        self.loop.run_until_complete(begin())

    def settle(self) -> None:
        self.loop.run_until_complete(self.system.turns(30))

    def begin(self, process: Any, call: Any) -> None:
        """Make `call` in a thread of `process`."""

        async def calling() -> Any:
            return await self.system.kernel.gate.call(process, call)

        self.threads[self.last] = self.system.thread(calling(), process)
        self.settle()

    # ---- what happens

    @precondition(lambda self: not self.closed)
    @rule(
        kind=KINDS,
        sender=st.integers(0, 1),
        priority=PRIORITIES,
        correlation=st.integers(0, 1),
        lifetime=LIFETIMES,
        wait=st.sampled_from([True, True, False]),
    )
    def send(self, kind: str, sender: int, priority: int, correlation: int, lifetime: float | None, wait: bool) -> None:
        self.last += 1
        until = float("inf") if lifetime is None else self.model.now + lifetime
        self.model.send(Letter(self.last, kind, sender, priority, correlation, until), wait=wait)
        call = Send(self.target.pid, self.last, kind, priority, wait, lifetime, correlation)
        self.begin(self.senders[sender], call)

    @precondition(lambda self: not self.closed)
    @rule(wanted=SELECTIONS, timeout=TIMEOUTS)
    def receive(self, wanted: dict[str, Any], timeout: float | None) -> None:
        self.receive_one(wanted, timeout)

    def receive_one(self, wanted: dict[str, Any], timeout: float | None) -> None:
        self.last += 1
        self.model.take(self.last, wanted, timeout)
        if "sender" in wanted:
            wanted = wanted | {"sender": self.senders[wanted["sender"]].pid}
        self.begin(self.target, Receive(timeout, **wanted))

    @precondition(lambda self: not self.closed)
    @rule()
    def take_all(self) -> None:
        while self.model.box:
            self.receive_one({}, 0.0)

    @precondition(lambda self: not self.closed)
    @rule()
    def the_kernel_tells_something(self) -> None:
        self.last += 1
        self.model.notify(Letter(self.last, "news", -1, CONTROL, 0, float("inf")))
        self.loop.run_until_complete(self.notify(self.last))
        self.settle()

    async def notify(self, number: int) -> None:
        self.system.kernel.messaging.notify(self.target, "news", number)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.model.pass_time(seconds)
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.settle()

    @rule(pick=PICK)
    def a_wait_is_cancelled(self, pick: int) -> None:
        waiting = [letter.body for letter in self.model.line] + [number for number, _, _ in self.model.receivers]
        for number in waiting[pick : pick + 1]:
            self.model.line = [letter for letter in self.model.line if letter.body != number]
            self.model.receivers = [receiver for receiver in self.model.receivers if receiver[0] != number]
            self.model.outcome[number] = CANCELLED
            self.threads[number].cancel()
            self.settle()

    @precondition(lambda self: not self.closed and self.last > 25)
    @rule()
    def the_recipient_ends(self) -> None:
        self.closed = True
        self.model.close()
        self.system.kernel.process_exit.end(self.target, "killed", "by the test")
        self.settle()

    # ---- what holds

    @invariant()
    def the_box_holds_what_the_list_does(self) -> None:
        assert [message.body for message in self.box.peek()] == [letter.body for letter in self.model.ordered]
        assert self.box.taken == self.model.taken <= self.model.capacity
        assert self.box.closed == self.closed
        if not self.closed:
            rows = self.loop.run_until_complete(self.system.call(PeekMailbox(self.target.pid)))
            assert [row.type for row in rows] == [letter.type for letter in self.model.ordered]

    @invariant()
    def everybody_got_what_the_model_says(self) -> None:
        assert {number: _outcome(thread) for number, thread in self.threads.items() if thread.done()} == {
            number: outcome for number, outcome in self.model.outcome.items() if number in self.threads
        }
        assert self.buried == self.model.buried
        assert len(self.box._senders or ()) == len(self.model.line)

    def teardown(self) -> None:
        if hasattr(self, "box"):
            self.system.close()


def _outcome(thread: Thread) -> Any:
    if thread.cancelled():
        return CANCELLED
    error = thread.exception()
    if error is not None:
        assert isinstance(error, LlmosError)
        return type(error).__name__
    result = thread.result()
    return result.body if isinstance(result, Message) else "sent"


TestMailboxOfAProcess = MailboxOfAProcess.TestCase
TestMailboxOfAProcess.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
