"""Messages between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.messages import Message
from ipc.syscalls.base import Body, Count, Priority, Seconds, Syscall

# Agents inside the daemon may give any function; from a socket there can be none.
if TYPE_CHECKING:
    Predicate = Callable[[Message], bool] | None
else:
    Predicate = None


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


class Send(Syscall, tag="send", gc=False):
    """Put a message into the mailbox of `to`, a pid or a registered name; answers the message's id.

    If the mailbox is full, waits when `wait`, else fails. `lifetime`: seconds after which the message is void.
    `correlation` is for the two of them to match answers with questions; 0 means nothing. A body that is a Struct gives
    the message its name for a type, if `type` is empty. Errors: `UnknownProcess`, `UnknownName`, `MailboxFull`,
    `NotEncodable`, `UndeclaredType`, `BadMessage`, `MessageTooLarge`, `InvalidCall`, `DeadlockDetected`.
    """

    to: int | str
    body: Body
    type: str = ""
    priority: Priority = 0
    wait: bool = True
    lifetime: Seconds | None = None
    correlation: Count = 0
    returns: ClassVar[Any] = int


class Receive(Syscall, tag="receive", gc=False):
    """Take the most urgent message from the caller's own mailbox, waiting for one. Errors: `TimedOut`, `InvalidCall`.

    Of those of a type, from a sender, with a correlation id, if given; `where`, inside the daemon only, looks at the
    message's heading. Messages that do not match stay where they are.
    """

    timeout: Seconds | None = None
    type: str | None = None
    sender: int | None = None
    correlation: int | None = None
    where: Predicate = None
    returns: ClassVar[Any] = Message


ANY_MESSAGE = Receive()  # what nearly every `receive` of an agent says


class Call(Syscall, tag="call", gc=False):
    """Send to `to`, a pid or a registered name, and wait for the reply's body.

    Errors: as `Send`; `TimedOut`; `UnknownProcess` when `to` ends; `DeadlockDetected` when it waits for the caller.
    """

    to: int | str
    body: Body
    timeout: Seconds | None = None
    type: str = ""
    priority: Priority = 0


class Reply(Syscall, tag="reply", gc=False):
    """Reply to `message`, the id of one that came from `to` by a call. Errors: `NotACall`, `NotEncodable`.

    `to` is gone or no longer waits: the reply becomes a dead letter, and the call answers normally.
    """

    to: int
    message: int
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
