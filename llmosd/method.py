"""A method that is described once and works on both clients: blocking on one, a coroutine on the other. No I/O.

Used by `llmosd.calls`. Type checkers and editors see the parameters as they were written, and what each client returns.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

from ipc.syscalls import Attach, Submit, Syscall
from llmosd.progress import Seen

if TYPE_CHECKING:
    from llmosd.async_client import AsyncClient, AsyncTask
    from llmosd.client import Client, Task

P = ParamSpec("P")
R = TypeVar("R")
Now = TypeVar("Now")
Later = TypeVar("Later")


class Ask(Generic[R]):
    """A call to make, and how its answer becomes the value of the method."""

    def __init__(self, call: Syscall, read: Callable[[Any], R] = lambda answer: answer) -> None:
        self.call = call
        self.read = read


class Follow:
    """A call that finds a task. `after`: how far its events were seen."""

    def __init__(self, call: Submit | Attach, after: Seen | tuple[int, int] | None = None) -> None:
        self.call = call
        self.after = after


class Caller:
    """What a client brings along."""

    _asynchronous: ClassVar[bool]

    def _ask(self, ask: Ask[Any]) -> Any:
        """Make the call and read its answer."""
        raise NotImplementedError

    def _follow(self, follow: Follow) -> Any:
        """Make the call, and make the task of its answer."""
        raise NotImplementedError


class Method(Generic[P, Now, Later]):
    """A method that returns `Now` on the blocking client, and a coroutine of `Later` on the asynchronous one.

    `describe` says what to do, and `do` of a client does it.
    """

    def __init__(self, describe: Callable[Concatenate[Any, P], Any], do: Callable[[Caller, Any], Any]) -> None:
        @wraps(describe)
        def blocking(client: Caller, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return do(client, describe(client, *args, **kwargs))

        @wraps(describe)
        async def asynchronous(client: Caller, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return await do(client, describe(client, *args, **kwargs))

        self._blocking, self._asynchronous = blocking, asynchronous

    @overload
    def __get__(self, client: Client, kind: type[Caller]) -> Callable[P, Now]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type[Caller]) -> Callable[P, Coroutine[Any, Any, Later]]: ...
    @overload
    def __get__(self, client: None, kind: type[Caller]) -> Callable[..., Any]: ...
    def __get__(self, client: Caller | None, kind: type[Caller]) -> Callable[..., Any]:
        method = self._asynchronous if kind._asynchronous else self._blocking
        return method if client is None else MethodType(method, client)


def asks(describe: Callable[Concatenate[Any, P], Ask[R]]) -> Method[P, R, R]:
    """Marks a method that makes one call."""
    return Method(describe, lambda client, ask: client._ask(ask))


def follows(describe: Callable[Concatenate[Any, P], Follow]) -> Method[P, Task, AsyncTask]:
    """Marks a method that returns a task."""
    return Method(describe, lambda client, follow: client._follow(follow))
