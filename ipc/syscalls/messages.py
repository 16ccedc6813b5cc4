"""Messages between processes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.messages import Message
from ipc.syscalls.base import Body, Count, Priority, Seconds, Syscall


class Heading(msgspec.Struct, frozen=True):
    """A message without its body, as `llmos mailbox` shows it. `size`: bytes of the encoded body."""

    id: int
    type: str
    sender: int
    recipient: int
    priority: int
    correlation: int
    size: int


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that nobody received: what it was, why, and when (seconds since the epoch)."""

    message: Heading
    reason: str
    time: float


class NameInfo(msgspec.Struct, frozen=True):
    """A registered name and the process that holds it."""

    name: str
    pid: int
    program: str


class Send(Syscall, tag="send"):
    """Put a message into the mailbox of `to`; answers its id.

    If the mailbox is full, waits when `wait`, else fails. `lifetime`: seconds after which the message is void.
    Errors: `UnknownProcess`, `MailboxFull`, `NotEncodable`.
    """

    to: int
    body: Body
    type: str = ""
    priority: Priority = 0
    wait: bool = True
    lifetime: Seconds | None = None
    returns: ClassVar[Any] = int


class Receive(Syscall, tag="receive"):
    """Take the most urgent message from the caller's own mailbox, waiting for one. Errors: `TimedOut`."""

    timeout: Seconds | None = None
    returns: ClassVar[Any] = Message


class Call(Syscall, tag="call"):
    """Send to `to` and wait for the reply's body. Errors: as `Send`; `TimedOut`; `UnknownProcess` when `to` ends."""

    to: int
    body: Body
    timeout: Seconds | None = None
    type: str = ""
    priority: Priority = 0


class Reply(Syscall, tag="reply"):
    """Reply to a message that came by a call: `to` and `correlation` are the message's. Errors: `NotACall`.

    `to` is gone or no longer waits: the reply becomes a dead letter, and the call answers normally.
    """

    to: int
    correlation: int
    body: Body


class Register(Syscall, tag="register"):
    """Give process `pid` (0: the caller) the name `name`, until it ends or gives it up. `NameTaken`, `InvalidCall`."""

    name: str
    pid: Count = 0


class Unregister(Syscall, tag="unregister"):
    """Give up a name of the caller. Errors: `UnknownName`, `NotPermitted`."""

    name: str


class Names(Syscall, tag="names"):
    """All registered names."""

    returns: ClassVar[Any] = list[NameInfo]


class Publish(Syscall, tag="publish"):
    """Send to every process that subscribed to a pattern that `topic` matches; answers how many got it.

    A topic is words separated by dots. A subscriber whose mailbox is full gets none: its copy is a dead letter, and
    waits for nobody. Errors: `InvalidCall`, `NotEncodable`.
    """

    topic: str
    body: Body
    priority: Priority = 0
    lifetime: Seconds | None = None
    returns: ClassVar[Any] = int


class Subscribe(Syscall, tag="subscribe"):
    """Receive what is published on topics that match `pattern`: `*` stands for one word, a last `#` for any number.

    The message's type is the topic. Errors: `InvalidCall`.
    """

    pattern: str


class Unsubscribe(Syscall, tag="unsubscribe"):
    """Take a subscription back. Errors: `NotFound`."""

    pattern: str


class PeekMailbox(Syscall, tag="mailbox"):
    """The headings of the first `limit` messages that wait in the mailbox of `pid`, in the order of their receipt."""

    pid: int
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    returns: ClassVar[Any] = list[Heading]


class DeadLetters(Syscall, tag="deadletters"):
    """The last dead letters, oldest first."""

    returns: ClassVar[Any] = list[DeadLetter]


MessageCalls = (
    Send
    | Receive
    | Call
    | Reply
    | Register
    | Unregister
    | Names
    | Publish
    | Subscribe
    | Unsubscribe
    | PeekMailbox
    | DeadLetters
)
