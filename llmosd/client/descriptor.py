"""A method that is described once and works on both clients: blocking on one, a coroutine on the other. No I/O.

Used by `llmosd.client.methods`. Type checkers and editors see the parameters as they were written, and what each client
returns.
It knows the clients only by what they have in common, `Blocking` and `Asynchronous`.
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
T = TypeVar("T")  # the kind of task that a client makes


class Ask(Generic[R]):
    """A call to make, and how its answer becomes the value of the method."""

    def __init__(self, call: Syscall, read: Callable[[Any], R] = lambda answer: answer) -> None:
        self.call = call
        self.read = read


class Follow:
    """A call that finds a task. `after`: how far its events were seen."""

    def __init__(self, call: Submit | Attach, after: Cursor | tuple[int, int] | None = None) -> None:
        self.call = call
        self.after = after


class RequestMaker(Generic[T]):
    """What a client brings along: how it makes a call, and a task `T` of the answer."""

    _asynchronous: ClassVar[bool]

    def _ask(self, ask: Ask[Any]) -> Any:
        """Make the call and read its answer."""
        raise NotImplementedError

    def _follow(self, follow: Follow) -> Any:
        """Make the call, and make the task of its answer."""
        raise NotImplementedError


class Blocking(RequestMaker[T]):
    """A client whose methods return when they have the answer."""

    _asynchronous = False


class Asynchronous(RequestMaker[T]):
    """A client whose methods are coroutines."""

    _asynchronous = True


class _Method(Generic[P]):
    """`describe` says what to do, and `do` of a client does it."""

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
    """A method that makes one call, and returns `R`."""

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
    """A method that returns a task of the kind that the client makes."""

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
    """Marks a method that makes one call."""
    return AskMethod(describe, lambda client, ask: client._ask(ask))


def follows(describe: Callable[Concatenate[Any, P], Follow]) -> FollowMethod[P]:
    """Marks a method that returns a task."""
    return FollowMethod(describe, lambda client, follow: client._follow(follow))
