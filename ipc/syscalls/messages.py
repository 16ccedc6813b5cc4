"""Messages between processes: send, receive, call and reply; names, topics and dead letters.

A body has at most 4 MiB when encoded; larger values belong in a shared region. A message's type has at most 4,096
characters. Priorities go from -20 to 20, the most urgent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.messages import Message
from ipc.syscalls.base import Body, Count, Integer, Priority, Seconds, Syscall

# Agents inside the daemon may pass any function. A socket cannot carry one.
if TYPE_CHECKING:
    Predicate = Callable[[Message], bool] | None
else:
    Predicate = None


class Heading(msgspec.Struct, frozen=True):
    """A message without its body, as `llmos mailbox` shows it. `size`: bytes of the encoded body.

    The other fields are those of `ipc.messages.Message`.
    """

    id: int
    type: str
    sender: int
    recipient: int
    priority: int
    correlation: int
    size: int


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that no process received, with the reason and the time in seconds since the epoch."""

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

    If the mailbox is full, the call waits for room, or fails with `MailboxFull` if `wait` is false. It is full when it
    holds as many messages, or bytes in bodies over 1 KiB, as the limits of its process allow. `lifetime`: seconds
    after which an unread message becomes a dead letter. `correlation`: any number by which sender and recipient match
    answers with questions. If `type` is empty and the body is a Struct, the message gets the Struct's name as its type.
    If the recipient is durable, the call answers when the message is on disk. Errors: `UnknownProcess`, `UnknownName`,
    `MailboxFull`, `NotEncodable`, `MessageTooLarge`, `UndeclaredType`, `BadMessage`, `InvalidCall`, `Busy` if the
    messages in all mailboxes take too much memory, and `DeadlockDetected` if the wait for room would never end.
    """

    to: Integer | str
    body: Body
    type: str = ""
    priority: Priority = 0
    wait: bool = True
    lifetime: Seconds | None = None
    correlation: Count = 0
    returns: ClassVar[Any] = int


class Receive(Syscall, tag="receive", gc=False):
    """Take the most urgent message out of the caller's mailbox, or wait for one; answers the message.

    Messages of one priority are received in the order in which they were sent. `type`, `sender` (a pid) and
    `correlation` select messages; all other messages stay in the mailbox. Agents may also pass `where`, a predicate. It
    gets the whole message, the body of which may still be encoded. Errors: `TimedOut` after `timeout` seconds,
    `InvalidCall`.
    """

    timeout: Seconds | None = None
    type: str | None = None
    sender: Integer | None = None
    correlation: Integer | None = None
    where: Predicate = None
    returns: ClassVar[Any] = Message


ANY_MESSAGE = Receive()  # nearly every `receive` of an agent makes this call


class Call(Syscall, tag="call", gc=False):
    """Send a message to `to`, a pid or a registered name, and wait for the reply; answers the body of the reply.

    `timeout`: seconds for the whole call, including the wait for room in the mailbox. Errors: those of `Send`, except
    `MailboxFull`; `TimedOut`; `UnknownProcess` if `to` ends before it replies; `DeadlockDetected` if `to` waits for the
    caller; `InvalidCall` if `to` is the caller.
    """

    to: Integer | str
    body: Body
    timeout: Seconds | None = None
    type: str = ""
    priority: Priority = 0


class Reply(Syscall, tag="reply", gc=False):
    """Reply to a call. `message` is the id of the message, and `to` its sender. Errors: `NotACall`, `NotEncodable`.

    If the sender no longer waits, the reply becomes a dead letter, and the call succeeds.
    """

    to: Integer
    message: Integer
    body: Body


class Register(Syscall, tag="register"):
    """Give process `pid` (0: the caller) the name `name`, until the process ends or gives the name up.

    A name has 1 to 200 printable characters and is not a number. A process may have up to 1,000 names. Errors:
    `NameTaken`, `InvalidCall`, `UnknownProcess`, `LimitExceeded`.
    """

    name: str
    pid: Count = 0


class Unregister(Syscall, tag="unregister"):
    """Give up a name of the caller; a client may give up any name. Errors: `UnknownName`, `NotPermitted`."""

    name: str


class Names(Syscall, tag="names"):
    """Answers the registered names, sorted: one page of those after `after`.

    Without `after`, it answers all. Errors: `LimitExceeded` if these are more than a page.
    """

    after: str | None = None
    page: ClassVar[int] = 2_000
    returns: ClassVar[Any] = list[NameInfo]


class Publish(Syscall, tag="publish"):
    """Send a message to each process with a subscription that matches `topic`; answers how many processes got it.

    A topic is 1 to 32 words with dots between them. It becomes the type of the message. The call never waits for room:
    if a subscriber's mailbox is full, the message for that subscriber becomes a dead letter. `lifetime` is as in
    `Send`. A message to many subscribers is delivered in parts; publications of one process never overtake each other.
    Errors: `InvalidCall`, `NotEncodable`, `MessageTooLarge`, `Busy`.
    """

    topic: str
    body: Body
    priority: Priority = 0
    lifetime: Seconds | None = None
    returns: ClassVar[Any] = int


class Subscribe(Syscall, tag="subscribe"):
    """Receive each message that is published on a topic that matches `pattern`.

    In a pattern, `*` stands for one word, and a final `#` for any number of words, including none. A pattern has up to
    1,024 characters. Errors: `InvalidCall`, and `LimitExceeded` beyond 4,096 patterns of a process, or 2,000,000 words
    in the patterns of all.
    """

    pattern: str


class Unsubscribe(Syscall, tag="unsubscribe"):
    """Undo `Subscribe` of the same pattern. Errors: `NotFound`."""

    pattern: str


class PeekMailbox(Syscall, tag="mailbox"):
    """Answers the headings of up to `limit` messages in the mailbox of process `pid`. Errors: `UnknownProcess`.

    They are in the order in which `Receive` takes them, without the first `start` ones. One answer has at most a page
    of rows. Types of messages are shortened.
    """

    pid: Integer
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    start: Count = 0
    page: ClassVar[int] = 1_000
    returns: ClassVar[Any] = list[Heading]


class DeadLetters(Syscall, tag="deadletters"):
    """Answers the last 1,000 dead letters, the oldest first."""

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
