"""Methods that are described once and work on both clients: blocking on one, a coroutine on the other.

Used by `llmosd.client.methods`. Type checkers and editors see the parameters as written, and for each client the type
that its method returns. It does no I/O, and knows the clients only by their bases `Blocking` and `Asynchronous`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from types import MethodType
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

from ipc.syscalls import Attach, Submit, Syscall
from llmosd.client.cursor import Cursor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")  # the type of task that a client returns


class Ask(Generic[R]):
    """A system call, and a function that turns its answer into the value of the method."""

    def __init__(self, call: Syscall, read: Callable[[Any], R] = lambda answer: answer) -> None:
        self.call = call
        self.read = read


class Follow:
    """A system call that returns a task. `after`: the last event of the task that was read earlier."""

    def __init__(self, call: Submit | Attach, after: Cursor | tuple[int, int] | None = None) -> None:
        self.call = call
        self.after = after


class RequestMaker(Generic[T]):
    """The methods that each client implements: they make a call, and `_follow` makes a task `T` from the answer."""

    _asynchronous: ClassVar[bool]

    def _ask(self, ask: Ask[Any]) -> Any:
        """Make the call and return its value."""
        raise NotImplementedError

    def _follow(self, follow: Follow) -> Any:
        """Make the call and return the task."""
        raise NotImplementedError


class Blocking(RequestMaker[T]):
    """A client whose methods block until the answer arrives."""

    _asynchronous = False


class Asynchronous(RequestMaker[T]):
    """A client whose methods are coroutines."""

    _asynchronous = True


class _Method(Generic[P]):
    """A method of both clients. `describe` returns the description of a call, and `do` makes that call on a client."""

    def __init__(
        self, describe: Callable[Concatenate[Any, P], Any], do: Callable[[RequestMaker[Any], Any], Any]
    ) -> None:
        @wraps(describe)
        def blocking(client: RequestMaker[Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return do(client, describe(client, *args, **kwargs))

        @wraps(describe)
        async def asynchronous(client: RequestMaker[Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return await do(client, describe(client, *args, **kwargs))

        self._blocking, self._asynchronous = blocking, asynchronous


class AskMethod(_Method[P], Generic[P, R]):
    """A method that makes one call and returns `R`."""

    @overload
    def __get__(self, client: Blocking[Any], kind: type[RequestMaker[Any]]) -> Callable[P, R]: ...
    @overload
    def __get__(
        self, client: Asynchronous[Any], kind: type[RequestMaker[Any]]
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, client: None, kind: type[RequestMaker[Any]]) -> Callable[..., Any]: ...
    def __get__(self, client: RequestMaker[Any] | None, kind: type[RequestMaker[Any]]) -> Callable[..., Any]:
        method = self._asynchronous if kind._asynchronous else self._blocking
        return method if client is None else MethodType(method, client)


class FollowMethod(_Method[P]):
    """A method that returns a task of the client's type."""

    @overload
    def __get__(self, client: Blocking[T], kind: type[RequestMaker[Any]]) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, client: Asynchronous[T], kind: type[RequestMaker[Any]]
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, kind: type[RequestMaker[Any]]) -> Callable[..., Any]: ...
    def __get__(self, client: RequestMaker[Any] | None, kind: type[RequestMaker[Any]]) -> Callable[..., Any]:
        method = self._asynchronous if kind._asynchronous else self._blocking
        return method if client is None else MethodType(method, client)


def asks(describe: Callable[Concatenate[Any, P], Ask[R]]) -> AskMethod[P, R]:
    """Decorates a method that makes one call."""
    return AskMethod(describe, lambda client, ask: client._ask(ask))


def follows(describe: Callable[Concatenate[Any, P], Follow]) -> FollowMethod[P]:
    """Decorates a method that returns a task."""
    return FollowMethod(describe, lambda client, follow: client._follow(follow))
