"""A daemon that answers only the calls that a test chooses, for tests of clients whose daemon hangs.

It serves one connection after another in a thread. It never runs a task, and never closes a connection by itself.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ipc.codec import decode, encode
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, Answer, Hello, Request, ToDaemon, Welcome
from ipc.syscalls import Ping, Pong, Syscall

Send = Callable[[Any], None]


class FakeDaemon:
    """Listens at `path`. `answers`: the answer to each class of calls; other calls get none.

    `welcome`: whether it answers a `Hello`. `reading`: while it is clear, the daemon reads nothing. After the answer to
    a request, `then` may send more messages. `received` lists all messages in their order.
    """

    def __init__(self, path: Path, answers: Mapping[type[Syscall], Any] | None = None, *, welcome: bool = True) -> None:
        self.path = path
        self.answers: dict[type[Syscall], Any] = {Ping: Pong(None)} if answers is None else dict(answers)
        self.received: list[Any] = []
        self.then: Callable[[Request, Send], None] = lambda request, send: None
        self.reading = threading.Event()
        self.reading.set()
        self.changed = threading.Condition()
        self._welcome = welcome
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def of(self, kind: type) -> list[Any]:
        """The messages of one class so far."""
        return [message for message in self.received if isinstance(message, kind)]

    def wait_for(self, kind: type) -> Any:
        """The first message of a class, when it has arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.of(kind), 60), f"no {kind.__name__} arrived"
        return self.of(kind)[0]

    def send(self, message: Any) -> None:
        assert self.connection is not None
        self.connection.sendall(frame(encode(message)))

    def hang_up(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.reading.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join(60)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                self.connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self.connection:
                for message in self._messages(self.connection):
                    self._take(message)

    def _messages(self, connection: socket.socket) -> Iterator[Any]:
        frames = FrameDecoder()
        while True:
            self.reading.wait()
            data = connection.recv(1 << 16)
            if not data:
                return
            for payload in frames.feed(data):
                yield decode(payload, ToDaemon)

    def _take(self, message: Any) -> None:
        with self.changed:
            self.received.append(message)
            self.changed.notify_all()
        if isinstance(message, Hello) and self._welcome:
            self.send(Welcome(VERSION, 1, 1))
        if isinstance(message, Request) and type(message.call) in self.answers:
            self.send(Answer(message.id, self.answers[type(message.call)]))
            self.then(message, self.send)
