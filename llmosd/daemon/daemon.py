"""The daemon: settings, log, socket, kernel and signals, from start to drain.

Started by the `llmosd` command. It listens and hands every connection to the kernel; it decides nothing else.
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
import uvloop

import kernel.kernel as microkernel
import llmosd
from ipc.errors import ConfigError, LlmosError
from kernel.connection import Connection
from kernel.journal.journal import Journal
from kernel.lib import failpoints
from llmosd.context import Context
from llmosd.daemon import logs, settings, systemd
from llmosd.daemon.listener import SocketClaim

SOCKET_CHECK = 2.0  # seconds between two looks whether the socket file is still there
CLOSE_TIMEOUT = 5.0  # seconds for connections and drivers to end after the drain

GC_THRESHOLD = (10_000, 500, 100)  # allocations, and collections of the younger generation

log = structlog.get_logger("llmosd")


class Daemon:
    """One run of the daemon."""

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
        """Serve until told to stop. Raises why the journal could not be opened."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        server = await self._listen()
        log.info("listening", socket=str(self._claim.path), pid=os.getpid(), model=self._config.model)
        self._kernel.resources.start()
        if self._config.preload:
            self._kernel.resources.preload()
        # What was made at start lives for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # An agent at rest is some 15 objects without a cycle; the default looks at them all every few dozen spawns.
        gc.set_threshold(*GC_THRESHOLD)
        tasks = [asyncio.create_task(self._announce()), asyncio.create_task(self._beat())]
        if self._claim.given is None:
            tasks.append(asyncio.create_task(self._keep_socket(server)))
        self._kernel.watchdog.start()
        await self._stop.wait()
        self._notifier.tell("STOPPING=1", "STATUS=draining")
        await self._drain()
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._kernel.close()
        except TimeoutError:
            log.warning("drivers did not end in time; they end with this process")
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

    async def _announce(self) -> None:
        """Tell systemd that all is there, once the journal is open; if it cannot be, the daemon ends without."""
        with contextlib.suppress(LlmosError):
            await self._journal.read(lambda store: None)
            self._notifier.tell("READY=1", f"STATUS=listening at {self._claim.path}, model {self._config.model}")

    async def _beat(self) -> None:
        """Give systemd signs of life as long as the loop goes round."""
        while self._notifier.beat:
            self._notifier.tell("WATCHDOG=1")
            await asyncio.sleep(self._notifier.beat)

    async def _keep_socket(self, server: asyncio.AbstractServer) -> None:
        """Listen anew if the socket file was removed under us."""
        while True:
            await asyncio.sleep(SOCKET_CHECK)
            if not await asyncio.to_thread(self._claim.present):
                log.warning("the socket file was removed; listening anew", socket=str(self._claim.path))
                server.close()
                server = await self._listen()

    async def _drain(self) -> None:
        if self._stop_now.is_set():
            return
        drain = asyncio.create_task(self._kernel.drain(self._config.drain_seconds))
        at_once = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((drain, at_once), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        at_once.cancel()

    def _journal_failed(self, error: LlmosError) -> None:
        self._failure = error
        self._shutdown(now=True, why=error.message)

    def _signalled(self, number: signal.Signals) -> None:
        self._shutdown(now=self._stop.is_set(), why=number.name)

    def _shutdown(self, now: bool, why: str = "request") -> None:
        log.info("stopping at once" if now else "stopping", why=why)
        self._stop.set()
        if now:
            self._stop_now.set()


def parser() -> argparse.ArgumentParser:
    """The command line of `llmosd`."""
    parser = argparse.ArgumentParser(prog="llmosd", description="The llmosd daemon: runs LLM agents over local models.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings (default: ~/.config/llmosd/llmosd.toml)")
    parser.add_argument("--socket", metavar="PATH", help="Unix socket to listen at")
    parser.add_argument("--state", metavar="DIR", help="folder for the daemon's state")
    parser.add_argument("--agents", metavar="DIR", action="append", help="one more folder of agents (repeatable)")
    parser.add_argument("--model", metavar="NAME", help="model for calls that name none: a configured name, or a path")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="human, json, or auto: human on a terminal")
    parser.add_argument("--version", action="version", version=f"llmosd {llmosd.__version__}")
    return parser


def main() -> int:
    """Run the daemon. Exit codes: 0 stopped as asked, 2 wrong settings or arguments, 1 cannot start."""
    arguments = vars(parser().parse_args())
    _check_installation()
    try:
        config = settings.load(arguments.pop("config"), arguments)
        logs.configure(config.log_level, config.log_format)
        if armed := failpoints.arm():
            log.warning("faults happen on purpose", asked_by=failpoints.VARIABLE, faults=armed)
        _write_crashes_to(config.state_path)
        claim = SocketClaim(config.socket_path, systemd.activated())
    except LlmosError as error:
        print(f"llmosd: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    try:
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_run(config, claim, systemd.Notifier()))
    except LlmosError as error:
        print(f"llmosd: {error.message}", file=sys.stderr)
        return 1
    finally:
        claim.release()
    # All that could be ended in order has ended. What may still run are worker threads of agents, which nothing can
    # interrupt, and coroutines that ignore their end: neither the runner nor the interpreter is to wait for them.
    sys.stderr.flush()
    os._exit(0)


async def _run(config: settings.Settings, claim: SocketClaim, notifier: systemd.Notifier) -> None:
    await Daemon(config, claim, notifier).run()


def _write_crashes_to(state: Path) -> None:
    """Have a fatal signal leave a traceback in the state folder. Raises `ConfigError` if that cannot be written."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        faulthandler.enable((state / "crash.log").open("ab"))
    except OSError as error:
        raise ConfigError(f"state: cannot write in {state}: {error.strerror}", key="state") from None


def _check_installation() -> None:
    """Make sure that `kernel` is ours and not a folder of that name that somebody's path put first."""
    ours = Path(__file__).resolve().parent.parent.parent
    theirs = Path(str(microkernel.__file__)).resolve().parent.parent
    if ours != theirs:
        raise SystemExit(f"llmosd: the package `kernel` was imported from {theirs}, not {ours}; check PYTHONPATH")
