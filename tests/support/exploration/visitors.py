"""Visitors: clients on connections of their own that send requests, abandon some, and leave without notice.

Each speaks the real protocol with a real connection of the kernel, over a transport inside the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from ipc.messages import Failed, Message, Result
from ipc.protocol import VERSION, Abandon, Credit, End, Failure, FromDaemon, Hello, RawAnswer, Request, StreamEvent
from ipc.syscalls import Call, Generate, Kill, Logs, Nice, Ps, Receive, Resume, Sampling, Send, Spawn, Suspend, Wait
from kernel.connection import Connection
from tests.support.exploration.world import World


class Wire(asyncio.Transport):
    """Hands each frame that the kernel writes to the visitor immediately."""

    def __init__(self, visitor: Visitor) -> None:
        super().__init__()
        self._visitor = visitor
        self._closing = False

    def write(self, data: Any) -> None:
        for payload in self._visitor.frames.feed(bytes(data)):
            self._visitor.handle(decode(payload, FromDaemon))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._visitor.world.loop.call_soon(self._visitor.leave)

    def abort(self) -> None:
        self.close()


class Visitor:
    """One connection. `asked` are the requests that were neither answered nor abandoned."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frames = FrameDecoder()
        self.connection = Connection(world.kernel, set())
        self.asked: dict[int, Any] = {}
        self.streams: dict[int, int] = {}  # by request: events that it has credit for
        self.final: set[int] = set()
        self.last = 0
        self.here = True
        self.connection.connection_made(Wire(self))
        self.say(Hello(VERSION, "visitor"))

    def say(self, message: Any) -> None:
        self.connection.data_received(frame(encode(message)))

    def act(self) -> None:
        """Send a request, abandon one, grant more events, or leave."""
        world, chance = self.world, self.world.chance
        what = chance.choices(["ask", "abandon", "grant", "leave"], [10, 2, 3, 1])[0]
        if what == "leave":
            self.leave()
        elif what == "abandon" and self.asked:
            number = chance.choice(list(self.asked))
            world.trace("visitor abandons", number)
            self.asked.pop(number)
            self.streams.pop(number, None)
            self.say(Abandon(number))
        elif what == "grant" and self.streams:
            number = chance.choice(list(self.streams))
            self.streams[number] += 3
            self.say(Credit(number, 3))
        else:
            self.ask()

    def ask(self) -> None:
        world, chance = self.world, self.world.chance
        pid = world.anyone()
        calls: list[Callable[[], Any]] = [
            lambda: world.child(detach=world.maybe(0.2), credit=chance.choice([0, 1, 5, 1000])),
            lambda: Send(pid, "from a visitor", wait=world.maybe(0.7)),
            lambda: Call(pid, "asked by a visitor", world.time()),
            lambda: Receive(world.time()),
            lambda: Wait(pid, world.time()),
            lambda: chance.choice([Kill, Suspend, Resume, Resume])(pid),
            lambda: Nice(pid, chance.choice([-5, 0, 5])),
            lambda: Generate("one two", sampling=Sampling(max_tokens=chance.randrange(1, 6))),
            lambda: Logs(pid, credit=chance.choice([0, 2, 1000])),
            lambda: Ps(clients=True),
        ]
        call = chance.choice(calls)()
        if not isinstance(call, Spawn) or not world.crowded:
            self.request(call)

    def request(self, call: Any) -> None:
        world = self.world
        self.last += 1
        world.trace("visitor asks", self.last, type(call).__name__, getattr(call, "pid", getattr(call, "to", "")))
        self.asked[self.last] = call
        if isinstance(call, Spawn | Logs) and call.credit:
            self.streams[self.last] = call.credit
        self.say(Request(self.last, call))

    def handle(self, message: Any) -> None:
        problems = self.world.ledger.problems
        match message:
            case RawAnswer(id=number) | Failure(id=number) if number:
                call = self.asked.pop(number, None)
                if call is None and isinstance(message, RawAnswer) and number > 0:
                    return  # the answer crossed an abandonment
                if isinstance(message, Failure):
                    self.streams.pop(number, None)
                elif isinstance(call, Receive):
                    self.world.ledger.received[decode(message.value, Message).id] += 1
            case StreamEvent(id=number, event=event):
                if number not in self.streams:
                    return  # abandoned
                self.streams[number] -= 1
                if self.streams[number] < 0:
                    problems.append(f"more events under request {number} than there was credit for")
                if number in self.final:
                    problems.append(f"an event under request {number} after its last one")
                if isinstance(event, Result | Failed):
                    self.final.add(number)
            case End(id=number):
                self.final.add(number)

    def read_everything(self) -> None:
        """Grant more events than there can be."""
        for number in self.streams:
            self.streams[number] += 10**6
            self.say(Credit(number, 10**6))

    def leave(self) -> None:
        """Lose the connection."""
        if self.here:
            self.world.trace("a visitor leaves")
            self.here = False
            self.asked.clear()
            self.streams.clear()
            self.connection.connection_lost(None)
