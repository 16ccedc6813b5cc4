"""One run of the daemon, from its start to its end: the socket, the signals and one kernel, on one event loop.

Started by `llmosd.daemon.daemon`. It passes every connection to the kernel and decides nothing else. Each step of a
stop has a time limit, and the last resort ends the process if the loop itself hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import structlog

import kernel.kernel as microkernel
import llmosd
from ipc.errors import ConfigError, LlmosError
from kernel.connection import Connection
from kernel.journal.journal import Journal
from kernel.lib.users import user_name
from kernel.lib.worker_threads import in_thread
from kernel.processes import stdio
from llmosd.context import Context
from llmosd.daemon import forked_child, systemd
from llmosd.daemon.last_resort import LastResort
from llmosd.daemon.listener import SocketClaim
from llmosd.daemon.log_writer import LogWriter
from llmosd.daemon.logs import DaemonLog
from llmosd.daemon.reload import apply_settings, differences
from llmosd.daemon.report import write_report
from llmosd.daemon.settings import Settings
from llmosd.daemon.signals import STOPPING, Signals

CHECK_SECONDS = 2.0  # between two checks of the socket file and of the signals
WRITE_SECONDS = 20.0  # after `drain_seconds`, for agents to end and for results and generations to reach the disk
CLOSE_SECONDS = 5.0  # for connections and drivers to end after the drain
JOURNAL_SECONDS = 3.0  # more, for a journal that is still open
SLACK_SECONDS = 5.0  # in which a loop that works has ended for certain

log = structlog.get_logger("llmosd")


class Parts:
    """The parts of the process that the run uses and does not own. `load` reads the settings again."""

    def __init__(
        self,
        *,
        load: Callable[[], Settings],
        claim: SocketClaim,
        signals: Signals,
        last_resort: LastResort,
        log: DaemonLog,
        writer: LogWriter,
    ) -> None:
        self.load = load
        self.claim = claim
        self.signals = signals
        self.last_resort = last_resort
        self.log = log
        self.writer = writer
        self.notifier = systemd.Notifier()
        self.journal: Journal | None = None  # of the run, which sets it
        self.drain_seconds = 0.0  # as the settings say now

    def stop_begins(self, *, now: bool) -> None:
        """End the process if the stop takes longer than its steps may. Called on the loop and on the signal thread.

        The journal records the stop now: whatever hangs later, it is no crash.
        """
        if self.journal is not None:
            self.journal.stop_began()
        drain = 0.0 if now else self.drain_seconds + WRITE_SECONDS
        self.last_resort.arm(drain + CLOSE_SECONDS + JOURNAL_SECONDS + SLACK_SECONDS)


class Daemon:
    """One run of the daemon, from its start to its end."""

    def __init__(self, config: Settings, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        parts.drain_seconds = config.drain_seconds
        self._claim = parts.claim
        self._notifier = parts.notifier
        self._connections: set[Connection] = set()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._failure: LlmosError | None = None
        self._ready = False
        self._reload: asyncio.Task[None] | None = None
        self._reload_again = False
        journal = self._journal = parts.journal = Journal(config.state_path, config.journal)
        journal.on_failure.append(self._journal_failed)
        self._kernel = microkernel.Kernel(
            config, Context, version=llmosd.__version__, journal=journal, on_shutdown=self._shutdown
        )

    async def run(self) -> None:
        """Serve until a signal or a client stops the daemon. Raises the error of the journal if it cannot be opened."""
        restore = stdio.install(self._kernel.printing)
        private = (self._claim.path, self._claim.lock_path.resolve(), self._config.state_path.resolve())
        forked_child.guard(asyncio.get_running_loop(), private, (self._kernel.printing.after_fork, restore))
        try:
            await self._serve()
        finally:
            with contextlib.suppress(TimeoutError):  # a start that failed, on a socket in use perhaps, is no crash
                async with asyncio.timeout(JOURNAL_SECONDS):
                    await self._journal.close()
            self._kernel.printing.close()  # the streams stay: threads of abandoned tools may print until the exit

    def attach_signals(self) -> None:
        """Receive signals on the running loop."""
        self._parts.signals.attach(self._signalled)

    def failed(self, error: BaseException) -> None:
        """Stop, because `error` left the loop: code of an agent raised it outside the agent's own steps."""
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if self._failure is None:
            self._failure = LlmosError(f"{what} was raised through the event loop, which stops the daemon")
        self._shutdown(now=self._stop.is_set(), why=what)

    async def _serve(self) -> None:
        self.attach_signals()
        owner = user_name(os.getuid())  # before the first client: a lookup may wait for a server
        server = await self._listen()
        log.info("listening", socket=str(self._claim.path), pid=os.getpid(), model=self._config.model, owner=owner)
        self._kernel.resources.start()
        if self._config.preload:
            self._kernel.resources.preload()
        self._kernel.garbage.start()
        tasks = [
            asyncio.create_task(self._notify_ready()),
            asyncio.create_task(self._keep_watchdog_alive()),
            asyncio.create_task(self._check(server)),
        ]
        self._kernel.watchdog.start()
        await self._stop.wait()
        self._notifier.notify("STOPPING=1", "STATUS=draining")
        await self._end()
        for task in tasks:
            task.cancel()
        self._kernel.watchdog.stop()
        self._kernel.garbage.stop()
        if self._failure is not None:
            raise self._failure
        self._parts.log.flush()
        log.info("stopped")

    async def _listen(self) -> asyncio.AbstractServer:
        return await self._claim.serve(lambda: Connection(self._kernel, self._connections))

    async def _notify_ready(self) -> None:
        """Report to systemd that the daemon is ready when the journal is open. If it does not open, the daemon ends."""
        with contextlib.suppress(LlmosError):
            await self._journal.read(lambda store: None)
            self._ready = True
            self._notifier.notify("READY=1", f"STATUS=listening at {self._claim.path}, model {self._config.model}")

    async def _keep_watchdog_alive(self) -> None:
        """Send keep-alive messages to systemd as long as the event loop runs."""
        while self._notifier.interval:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(self._notifier.interval)

    async def _check(self, server: asyncio.AbstractServer) -> None:
        """Listen on a new socket whenever the socket file was removed, and take back signals that an agent took.

        An error is logged once, and tried again.
        """
        reported = ""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if lost := self._parts.signals.repair():
                log.warning("an agent had removed the handlers of signals; they are back", signals=lost)
            if self._claim.activated is None and not await in_thread(self._claim.exists):
                server.close()
                try:
                    server = await self._listen()
                    log.warning("the socket file was removed; listening again", socket=str(self._claim.path))
                except LlmosError as error:
                    if error.message != reported:
                        log.error("the socket file was removed, and nobody can connect", error=error.message)
                    reported = error.message

    # ---- signals

    def _signalled(self, number: signal.Signals) -> None:
        if number in STOPPING:
            self._shutdown(now=self._stop.is_set(), why=number.name)
        elif number == signal.SIGHUP:
            self._reload_settings()
        elif number == signal.SIGUSR1:
            write_report(self._kernel, self._queues)
        else:
            log.info("this signal has no meaning", signal=number.name)

    def _queues(self) -> dict[str, Any]:
        lines, size, dropped = self._parts.writer.queued
        return {
            "log_lines": lines,
            "log_bytes": size,
            "log_dropped": dropped,
            "tasks_waiting_for_disk": self._journal.waiting,
            "ends_waiting_for_disk": 0 if self._kernel.tasks is None else self._kernel.tasks.unwritten,
            "stopping": self._stop.is_set(),
        }

    def _reload_settings(self) -> None:
        if self._reload is not None and not self._reload.done():
            self._reload_again = True  # the file may have changed after it was read
            return
        self._reload = asyncio.create_task(self._load_and_apply())

    async def _load_and_apply(self) -> None:
        while True:
            self._reload_again = False
            await self._load_and_apply_once()
            if not self._reload_again:
                return

    async def _load_and_apply_once(self) -> None:
        if self._ready:
            self._notifier.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            wanted = await in_thread(self._parts.load)
            self._config, changed = apply_settings(self._config, wanted, self._kernel, self._parts.log)
            self._parts.drain_seconds = self._config.drain_seconds
            restart = differences(self._config, wanted)
            log.info("the settings were reloaded", changed=changed, need_a_restart=restart)
        except ConfigError as error:
            log.error("the settings are wrong and were not reloaded; the old ones stay", error=error.message)
        except Exception:
            log.exception("the settings could not be reloaded")
        finally:
            if self._ready:
                self._notifier.notify("READY=1")

    # ---- the stop

    async def _end(self) -> None:
        """Drain, then close. Both end within their time limits, whatever agents and disks do."""
        try:
            await self._drain()
        except Exception:
            log.exception("the drain failed")
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._kernel.close()
        except TimeoutError:
            log.warning("not all parts ended in time; they end with the daemon", journal_closed=self._journal.closed)
        except Exception:
            log.exception("the kernel could not be closed")

    async def _drain(self) -> None:
        if self._stop_now.is_set():
            return
        drain = asyncio.create_task(self._kernel.drain(self._config.drain_seconds))
        stop_now = asyncio.create_task(self._stop_now.wait())
        seconds = self._config.drain_seconds + WRITE_SECONDS
        ended, _ = await asyncio.wait((drain, stop_now), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended:
            log.warning("the drain did not end in time; unwritten results of tasks are lost", seconds=seconds)
        drain.cancel()
        stop_now.cancel()
        if drain in ended:
            drain.result()

    def _journal_failed(self, error: LlmosError) -> None:
        self._failure = error
        self._shutdown(now=True, why=error.message)

    def _shutdown(self, now: bool, why: str = "request") -> None:
        log.info("stopping immediately" if now else "stopping", why=why)
        self._stop.set()
        if now:
            self._stop_now.set()
        self._parts.stop_begins(now=now)
