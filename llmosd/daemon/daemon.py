"""The daemon from start to drain: settings, log, socket, signals and one kernel.

Started by the `llmosd` command. It listens and passes every connection to the kernel; it decides nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
from pathlib import Path

import structlog

import kernel.kernel as microkernel
import llmosd
from ipc.errors import ConfigError, LlmosError
from kernel.connection import Connection
from kernel.event_loop.guarded import GuardedLoop
from kernel.journal.journal import Journal
from kernel.lib import failpoints
from kernel.lib.users import user_name
from kernel.processes import stdio
from llmosd import standard_streams
from llmosd.context import Context
from llmosd.daemon import logs, settings, systemd
from llmosd.daemon.listener import SocketClaim
from llmosd.printable import printable

SOCKET_CHECK = 2.0  # seconds between two checks that the socket file still exists
CLOSE_TIMEOUT = 5.0  # seconds for connections and drivers to end after the drain

GC_THRESHOLD = (10_000, 500, 100)  # see `gc.set_threshold`; collections of old objects become very rare

log = structlog.get_logger("llmosd")


class Daemon:
    """One run of the daemon, from its start to its end."""

    def __init__(self, config: settings.Settings, claim: SocketClaim, notifier: systemd.Notifier) -> None:
        self._config = config
        self._claim = claim
        self._notifier = notifier
        self._connections: set[Connection] = set()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._failure: LlmosError | None = None
        journal = self._journal = Journal(config.state_path, config.journal)
        journal.on_failure.append(self._journal_failed)
        self._kernel = microkernel.Kernel(
            config, Context, version=llmosd.__version__, journal=journal, on_shutdown=self._shutdown
        )

    async def run(self) -> None:
        """Serve until a signal or a client stops the daemon. Raises the error of the journal if it cannot be opened."""
        stdio.install(self._kernel.printing)
        try:
            await self._serve()
        finally:
            self._kernel.printing.close()  # the streams stay: threads of abandoned tools may print until the exit

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        owner = user_name(os.getuid())  # before the first client: a lookup may wait for a server
        server = await self._listen()
        log.info("listening", socket=str(self._claim.path), pid=os.getpid(), model=self._config.model, owner=owner)
        self._kernel.resources.start()
        if self._config.preload:
            self._kernel.resources.preload()
        # Objects made at start live as long as the daemon, so the garbage collector need not visit them again.
        gc.collect()
        gc.freeze()
        # A waiting agent consists of some 15 objects and no cycle. With the default thresholds, the collector would
        # visit the objects of all agents every few dozen spawns.
        gc.set_threshold(*GC_THRESHOLD)
        tasks = [asyncio.create_task(self._notify_ready()), asyncio.create_task(self._keep_watchdog_alive())]
        if self._claim.activated is None:
            tasks.append(asyncio.create_task(self._watch_socket(server)))
        self._kernel.watchdog.start()
        await self._stop.wait()
        self._notifier.notify("STOPPING=1", "STATUS=draining")
        await self._drain()
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._kernel.close()
        except TimeoutError:
            log.warning("drivers did not end in time; they end with the daemon")
        for task in tasks:
            task.cancel()
        self._kernel.watchdog.stop()
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    async def _listen(self) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self._kernel, self._connections), sock=self._claim.bind()
        )

    async def _notify_ready(self) -> None:
        """Report to systemd that the daemon is ready when the journal is open. If it does not open, the daemon ends."""
        with contextlib.suppress(LlmosError):
            await self._journal.read(lambda store: None)
            self._notifier.notify("READY=1", f"STATUS=listening at {self._claim.path}, model {self._config.model}")

    async def _keep_watchdog_alive(self) -> None:
        """Send keep-alive messages to systemd as long as the event loop runs."""
        while self._notifier.interval:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(self._notifier.interval)

    async def _watch_socket(self, server: asyncio.AbstractServer) -> None:
        """Listen on a new socket whenever the socket file was removed."""
        while True:
            await asyncio.sleep(SOCKET_CHECK)
            if not await asyncio.to_thread(self._claim.exists):
                log.warning("the socket file was removed; listening again", socket=str(self._claim.path))
                server.close()
                server = await self._listen()

    async def _drain(self) -> None:
        if self._stop_now.is_set():
            return
        drain = asyncio.create_task(self._kernel.drain(self._config.drain_seconds))
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((drain, stop_now), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        stop_now.cancel()

    def _journal_failed(self, error: LlmosError) -> None:
        self._failure = error
        self._shutdown(now=True, why=error.message)

    def _signalled(self, number: signal.Signals) -> None:
        self._shutdown(now=self._stop.is_set(), why=number.name)

    def _shutdown(self, now: bool, why: str = "request") -> None:
        log.info("stopping immediately" if now else "stopping", why=why)
        self._stop.set()
        if now:
            self._stop_now.set()


def parser() -> argparse.ArgumentParser:
    """The command line of `llmosd`."""
    parser = argparse.ArgumentParser(prog="llmosd", description="The llmosd daemon: runs LLM agents over local models.")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings file; default: ~/.config/llmosd/llmosd.toml"
    )
    parser.add_argument("--socket", metavar="PATH", help="the Unix socket to listen at")
    parser.add_argument("--state", metavar="DIR", help="the folder of the journal and other state")
    parser.add_argument("--agents", metavar="DIR", action="append", help="another folder of agents (repeatable)")
    parser.add_argument("--model", metavar="NAME", help="the default model: a configured name, or a path")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="human, json, or auto: human on a terminal, else json")
    parser.add_argument("--version", action="version", version=f"llmosd {llmosd.__version__}")
    return parser


def main() -> int:
    """Run the daemon. Exit codes: 0 stopped on request, 1 cannot start or run, 2 wrong settings or arguments."""
    standard_streams.prepare_command()
    return standard_streams.guard("llmosd", _main)


def _main() -> int:
    arguments = vars(parser().parse_args())
    standard_streams.prepare_daemon()
    _check_installation()
    try:
        config = settings.load(arguments.pop("config"), arguments)
        logs.configure(config.log_level, config.log_format)
        if armed := failpoints.arm():
            log.warning("faults happen on purpose", asked_by=failpoints.VARIABLE, faults=armed)
        _write_crashes_to(config.state_path)
        claim = SocketClaim(config.socket_path, systemd.activated())
    except LlmosError as error:
        print(f"llmosd: {printable(error.message)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    try:
        asyncio.Runner(loop_factory=GuardedLoop).run(_run(config, claim, systemd.Notifier()))
    except LlmosError as error:
        print(f"llmosd: {printable(error.message)}", file=sys.stderr)
        return 1
    finally:
        claim.release()
    # Worker threads of agents cannot be interrupted, and coroutines may ignore their cancellation. Everything else has
    # ended, so exit without waiting for these threads and coroutines.
    sys.stderr.flush()
    os._exit(0)


async def _run(config: settings.Settings, claim: SocketClaim, notifier: systemd.Notifier) -> None:
    await Daemon(config, claim, notifier).run()


def _write_crashes_to(state: Path) -> None:
    """Make fatal signals write a traceback to the folder `state`. Raises `ConfigError` if that is not possible."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        faulthandler.enable((state / "crash.log").open("ab"))
    except OSError as error:
        raise ConfigError(
            f"state: cannot write to {state}: {error.strerror}; choose another folder with --state", key="state"
        ) from None


def _check_installation() -> None:
    """Exit if the package `kernel` is not ours: PYTHONPATH may put another package of that name first."""
    ours = Path(__file__).resolve().parent.parent.parent
    theirs = Path(str(microkernel.__file__)).resolve().parent.parent
    if ours != theirs:
        raise SystemExit(f"llmosd: the package `kernel` was imported from {theirs}, not {ours}; check PYTHONPATH")
