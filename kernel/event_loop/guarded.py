"""The guarded loop: one event loop for the kernel and all agents, which no agent can stop for the others.

The daemon runs on it. A callback belongs to the process whose code hands it to the loop (`owner.py`). The kernel's own
callbacks run without an owner, even if a step of an agent caused them. What stops or changes the loop for everybody is
refused to agents. The loop never decides how a process ends: `on_exit` does.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any

import structlog
import uvloop

from kernel.core.process import Process, Thread
from kernel.event_loop.agent_threads import AgentThreads
from kernel.event_loop.belongings import BELONGINGS
from kernel.event_loop.callbacks import AgentCallback, ProtocolFactory, is_kernels, run_for
from kernel.event_loop.generators import GeneratorOwners
from kernel.event_loop.owner import acting_process, described
from kernel.event_loop.signals import SIGNALS
from kernel.programs.origin import ORIGIN, without_origin

log = structlog.get_logger("kernel.event_loop")

Loop: Any = object  # for mypy: any loop


class Guarded(Loop):  # type: ignore[misc]
    """The guards, to be mixed into the class of a loop: `class L(Guarded, SomeLoop)`.

    `on_exit` is called with a process and the `SystemExit` or `KeyboardInterrupt` that one of its callbacks raised.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.on_exit: list[Callable[[Process, BaseException], None]] = []
        self._no_origin = contextvars.Context()  # for the kernel's callbacks, of which one runs at a time
        self._soon = super().call_soon  # for speed: every wake-up passes here
        self._handlers: dict[Process, Callable[[Any, dict[str, Any]], object]] = {}
        self._generators = GeneratorOwners()
        self._agent_threads: AgentThreads | None = None
        super().__init__(*args, **options)

    def process_ended(self, process: Process) -> None:
        """Drop the exception handler of `process`, and its functions that wait for a thread."""
        if self._handlers:
            self._handlers.pop(process, None)
        if self._agent_threads is not None:
            self._agent_threads.process_ended(process)

    # ---- callbacks

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        origin = ORIGIN.get() if context is None else context.get(ORIGIN)
        if origin is not None:
            callback, context = self._owned(callback, origin, context)
        return self._soon(callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        origin = ORIGIN.get() if context is None else context.get(ORIGIN)
        if origin is not None:
            callback, context = self._owned(callback, origin, context)
        return super().call_soon_threadsafe(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        origin = ORIGIN.get() if context is None else context.get(ORIGIN)
        if origin is not None:
            callback, context = self._owned(callback, origin, context)
        return super().call_later(delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        origin = ORIGIN.get() if context is None else context.get(ORIGIN)
        if origin is not None:
            callback, context = self._owned(callback, origin, context)
        return super().call_at(when, callback, *args, context=context)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        self._add_descriptor(super().add_reader, "reader", fd, callback, args)

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:
        self._add_descriptor(super().add_writer, "writer", fd, callback, args)

    def remove_reader(self, fd: Any) -> bool:
        BELONGINGS.forget("reader", _number(fd))
        return bool(super().remove_reader(fd))

    def remove_writer(self, fd: Any) -> bool:
        BELONGINGS.forget("writer", _number(fd))
        return bool(super().remove_writer(fd))

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        process = acting_process()
        if process is None or isinstance(executor, ProcessPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        return super().run_in_executor(executor, run_for, process, func, *args)

    def _owned(
        self, callback: Any, origin: object, context: contextvars.Context | None
    ) -> tuple[Any, contextvars.Context | None]:
        if type(callback) is AgentCallback:
            return callback, context
        if is_kernels(callback):
            return callback, self._no_origin
        return AgentCallback(callback, origin, self._exited) if isinstance(origin, Process) else callback, context

    def _add_descriptor(self, add: Any, kind: str, fd: Any, callback: Any, args: tuple[Any, ...]) -> None:
        process = acting_process()
        if process is None or is_kernels(callback):
            add(fd, callback, *args)
            return
        add(fd, AgentCallback(callback, process, self._exited), *args)
        BELONGINGS.add_descriptor(process, kind, _number(fd))

    # ---- the end of a process by a callback

    def run_forever(self) -> None:
        """Run, also after code of an agent that the loop called directly has raised `SystemExit`."""
        while True:
            try:
                super().run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                process = _owner_in(error.__traceback__)
                if process is None:
                    raise
                self._exited(process, error)
            else:
                return

    def _exited(self, process: Process, error: BaseException) -> None:
        for hook in self.on_exit:
            hook(process, error)

    # ---- errors

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Handle an error of a callback. An agent's own handler is called for its own errors only."""
        process = _owner_of_error(context)
        error = context.get("exception")
        if process is None:
            super().call_exception_handler(context)
        elif isinstance(error, SystemExit | KeyboardInterrupt):
            self._exited(process, error)
        elif (handler := self._handlers.get(process)) is None:
            super().call_exception_handler(context)
        else:
            try:
                run_for(process, handler, self, context)
            except (SystemExit, KeyboardInterrupt) as exiting:
                self._exited(process, exiting)
            except BaseException as failure:
                message = "Unhandled error in exception handler"
                super().call_exception_handler({"message": message, "exception": failure})

    def set_exception_handler(self, handler: Any) -> None:
        process = acting_process()
        if process is None:
            super().set_exception_handler(handler)
        elif handler is None:
            self._handlers.pop(process, None)
        elif not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        elif process.status is None:
            self._handlers[process] = handler

    def get_exception_handler(self) -> Any:
        process = acting_process()
        if process is not None:
            return self._handlers.get(process)
        return super().get_exception_handler()

    # ---- asynchronous generators: those of a process are finished by a thread of that process

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        super()._asyncgen_firstiter_hook(agen)
        process = acting_process()
        if process is not None:
            self._generators.remember(agen, process)
        else:
            self._generators.forget(agen)

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        is_of_a_process, process = self._generators.take(agen)
        if is_of_a_process and (process is None or process.status is not None):
            return
        context = without_origin()
        context.run(ORIGIN.set, process)
        context.run(super()._asyncgen_finalizer_hook, agen)

    # ---- what a process opens

    def create_server(self, factory: Any, *args: Any, **options: Any) -> Any:
        return self._serve(super().create_server, factory, args, options)

    def create_unix_server(self, factory: Any, *args: Any, **options: Any) -> Any:
        return self._serve(super().create_unix_server, factory, args, options)

    def create_connection(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().create_connection(self._factory(factory), *args, **options)

    def create_unix_connection(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().create_unix_connection(self._factory(factory), *args, **options)

    def create_datagram_endpoint(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().create_datagram_endpoint(self._factory(factory), *args, **options)

    def connect_accepted_socket(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().connect_accepted_socket(self._factory(factory), *args, **options)

    def connect_read_pipe(self, factory: Any, pipe: Any) -> Any:
        return super().connect_read_pipe(self._factory(factory), pipe)

    def connect_write_pipe(self, factory: Any, pipe: Any) -> Any:
        return super().connect_write_pipe(self._factory(factory), pipe)

    def subprocess_exec(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().subprocess_exec(self._factory(factory), *args, **options)

    def subprocess_shell(self, factory: Any, *args: Any, **options: Any) -> Any:
        return super().subprocess_shell(self._factory(factory), *args, **options)

    def start_tls(self, transport: Any, protocol: Any, *args: Any, **options: Any) -> Any:
        return self._opened_later(super().start_tls(transport, protocol, *args, **options))

    def _factory(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        process = acting_process()
        return factory if process is None else ProtocolFactory(factory, process, self._exited, self)

    async def _serve(self, create: Any, factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        process = acting_process()
        server = await create(self._factory(factory), *args, **options)
        if process is not None:
            BELONGINGS.add(process, server, self)
        return server

    async def _opened_later(self, opening: Coroutine[Any, Any, Any]) -> Any:
        process = acting_process()
        transport = await opening
        if process is not None and transport is not None:
            BELONGINGS.add(process, transport, self)
        return transport

    # ---- what agents may not do

    def stop(self) -> None:
        _refuse("loop.stop()", "it would stop the daemon; to end this agent, return from it")
        super().stop()

    def close(self) -> None:
        _refuse("loop.close()", "it would stop the daemon; to end this agent, return from it")
        super().close()

    def set_debug(self, enabled: bool) -> None:
        _refuse("loop.set_debug()", "it would slow down all agents")
        super().set_debug(enabled)

    def set_task_factory(self, factory: Any) -> None:
        _refuse("loop.set_task_factory()", "it would change the tasks of all agents")
        super().set_task_factory(factory)

    def set_default_executor(self, executor: Any) -> None:
        _refuse("loop.set_default_executor()", "all agents share it; pass an executor to `loop.run_in_executor`")
        self._agent_threads = executor if isinstance(executor, AgentThreads) else None
        super().set_default_executor(executor)

    def shutdown_default_executor(self, *args: Any, **options: Any) -> Any:
        _refuse("loop.shutdown_default_executor()", "all agents share the executor")
        return super().shutdown_default_executor(*args, **options)

    def shutdown_asyncgens(self) -> Any:
        _refuse("loop.shutdown_asyncgens()", "it would end the asynchronous generators of all agents")
        return super().shutdown_asyncgens()

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        _refuse("loop.add_signal_handler()", "the daemon handles all signals; an agent gets messages instead")
        super().add_signal_handler(sig, callback, *args)
        SIGNALS.protect(sig)

    def remove_signal_handler(self, sig: int) -> bool:
        _refuse("loop.remove_signal_handler()", "the daemon handles all signals")
        SIGNALS.release(sig)
        return bool(super().remove_signal_handler(sig))


class GuardedLoop(Guarded, uvloop.Loop):  # type: ignore[misc]
    """The loop of the daemon."""


CALLED_BY_PYTHON = Guarded.run_forever.__code__


def _refuse(what: str, why: str) -> None:
    process = acting_process()
    if process is not None:
        raise RuntimeError(f"{described(process)} cannot call {what}: {why}")


def _owner_of_error(context: dict[str, Any]) -> Process | None:
    thread = context.get("task") or context.get("future")
    if isinstance(thread, Thread):  # the garbage collector reports its error in the step of any process
        return thread.process
    callback = getattr(context.get("handle"), "_callback", None)
    if isinstance(callback, AgentCallback):
        return callback.process
    return BELONGINGS.owner_of(context.get("protocol")) or acting_process()


def _number(fd: Any) -> int:
    return fd if isinstance(fd, int) else int(fd.fileno())


def _owner_in(traceback: TracebackType | None) -> Process | None:
    """The owner of the code that the loop called, by the protocol whose method it is."""
    while traceback is not None:
        frame = traceback.tb_frame
        names = frame.f_code.co_varnames
        if names and (process := BELONGINGS.owner_of(frame.f_locals.get(names[0]))) is not None:
            return process
        traceback = traceback.tb_next
    return None
