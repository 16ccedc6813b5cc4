"""The command `llmosd`: its arguments, the parts of the process that a run needs, and the exit.

It ends with one of three exit codes, and it always ends: no thread, no agent and no reader of the log can hold it up
(`leave`). It serves no client itself; `llmosd.daemon.run` does.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

import structlog

import kernel.kernel as microkernel
import llmosd
from ipc.errors import ConfigError, LlmosError
from kernel.event_loop.agent_threads import AgentThreads
from kernel.event_loop.guarded import GuardedLoop
from kernel.lib import descriptors, failpoints
from kernel.lib.private_files import make_private, open_private
from llmosd import standard_streams
from llmosd.daemon import forked_child, ownership, settings, signals, systemd
from llmosd.daemon.last_resort import LastResort
from llmosd.daemon.listener import SocketClaim
from llmosd.daemon.logs import DaemonLog
from llmosd.daemon.run import Daemon, Parts
from llmosd.daemon.streams import Streams
from llmosd.printable import printable

DONE, FAILED, WRONG_SETTINGS, INTERRUPTED = 0, 1, 2, 130

log = structlog.get_logger("llmosd")


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
    _check_installation()
    streams = Streams()
    descriptors.raise_limit()
    code = FAILED
    try:
        code = _start_and_run(arguments, streams)
    except LlmosError as error:
        print(f"llmosd: {printable(error.message)}", file=sys.stderr)
        code = WRONG_SETTINGS if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:  # also SystemExit: nothing may lead to Python's own exit, which waits for threads
        print(f"llmosd: cannot go on:\n{printable(traceback.format_exc())}", file=sys.stderr)
    leave(streams, code)


def leave(streams: Streams, code: int) -> NoReturn:
    """End the process, within a bound.

    Worker threads of agents cannot be interrupted, and coroutines may ignore their cancellation. Everything else has
    ended, so this waits for none of these threads and coroutines. Python's exit would, and would call code of agents.
    """
    try:
        streams.close()
        forked_child.end_workers()
    finally:
        os._exit(code)


def _start_and_run(arguments: dict[str, Any], streams: Streams) -> int:
    file = arguments.pop("config")
    config = settings.load(file, arguments)
    daemon_log = DaemonLog(streams.error, terminal=streams.terminal)
    daemon_log.configure(config.log_level, config.log_format)
    daemon_log.install()
    if armed := failpoints.arm():
        log.warning("faults happen on purpose", asked_by=failpoints.VARIABLE, faults=armed)
    ownership.check(config)
    crashes = _crash_file(config.state_path)
    signals.dump_on_quit(crashes)

    def write_log() -> None:
        daemon_log.close()
        streams.close()

    parts = Parts(
        load=lambda: settings.load(file, arguments),
        last_resort=LastResort(crashes, write_log),
        signals=signals.Signals(),
        claim=SocketClaim(config.socket_path, systemd.activated()),
        log=daemon_log,
        writer=streams.error,
    )
    parts.signals.on_stop = lambda count: parts.stop_begins(now=count > 1)
    try:
        _run(config, parts)
    finally:
        parts.stop_begins(now=True)
        parts.claim.release()
        daemon_log.close()
    return DONE


def _run(config: settings.Settings, parts: Parts) -> None:
    """Run the loop until the daemon has ended, even if code of an agent raises an error through the loop."""
    runner = asyncio.Runner(loop_factory=GuardedLoop)
    daemon: Daemon | None = None
    run: asyncio.Task[None] | None = None

    async def begin() -> None:
        nonlocal daemon, run
        # For `asyncio.to_thread` in agents: Python would make 6 threads on 2 processors, and wait for them at the end.
        asyncio.get_running_loop().set_default_executor(AgentThreads())
        daemon = Daemon(config, parts)
        run = asyncio.create_task(daemon.run())
        await run

    async def go_on(error: BaseException) -> None:
        assert daemon is not None
        assert run is not None
        daemon.attach_signals()
        daemon.failed(error)
        await run

    step = begin()
    while True:
        try:
            return runner.run(step)
        except BaseException as error:
            parts.signals.detach()
            if run is None or run.done():
                raise
            parts.stop_begins(now=False)
            step = go_on(error)


def _crash_file(state: Path) -> IO[bytes]:
    """A file in the folder `state`, to which fatal signals write a traceback. Raises `ConfigError`."""
    try:
        make_private(state)
        file = os.fdopen(open_private(state / "crash.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
        faulthandler.enable(file)
    except OSError as error:
        raise ConfigError(
            f"state: cannot write {error.filename or state}: {error.strerror}; choose another folder with --state",
            key="state",
        ) from None
    return file


def _check_installation() -> None:
    """Exit if the package `kernel` is not ours: PYTHONPATH may put another package of that name first."""
    ours = Path(__file__).resolve().parent.parent.parent
    theirs = Path(str(microkernel.__file__)).resolve().parent.parent
    if ours != theirs:
        raise SystemExit(f"llmosd: the package `kernel` was imported from {theirs}, not {ours}; check PYTHONPATH")
