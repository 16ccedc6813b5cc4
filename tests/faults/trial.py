"""A trial: a daemon under load in a folder of its own dies as planned, again and again; then everything is checked.

Used by the command line and by the short form in the tests. A broken promise raises `Violation` and leaves the folder
as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import apsw
import psutil

from kernel.journal.settings import FILE
from kernel.lib.failpoints import VARIABLE
from llmosd import AsyncClient, LlmosError
from tests.faults import checks
from tests.faults.fragile import FragileFile
from tests.faults.jobs import Violation
from tests.faults.load import Load
from tests.faults.plan import Death
from tests.support.paths import PROGRAMS

LLMOSD = Path(sys.executable).parent / "llmosd"
PATIENCE = 60.0  # seconds for anything that has to happen in the end
REFUSED = 1  # exit code of a daemon that cannot start
TIGHT = "{step_seconds = 0.0005, token_bytes = 1000, kv_memory = 200_000}"  # two long generations do not fit
SETTINGS = """
drain_seconds = 0.0
[journal]
attempts = 1000000
purge_every = 1.0
[models.simulated]
slots = 6
options = {options}
"""


class Trial:
    """`reached` counts deaths by kind, or by the name of their point; `missed` counts points not reached."""

    def __init__(self, folder: Path, model: str, seed: int, most: int = 1_000_000) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.lines = folder / "lines"
        self.reached: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.times: list[tuple[str, float]] = []
        self._model = model
        self._socket = folder / "llmosd.sock"
        self._log = folder / "daemon.log"
        self._settings = folder / "llmosd.toml"
        self._fragile = FragileFile(folder / "agents")
        self._settings.write_text(SETTINGS.format(options=TIGHT))
        self.load = Load(self._socket, self.lines, model, seed, most)

    async def run(self, deaths: Sequence[Death]) -> None:
        """Run through all `deaths` and once more without one, then check everything. Raises `Violation`."""
        load = asyncio.create_task(self.load.run())
        try:
            for death in deaths:
                await self._run_and_die(death)
                if load.done():
                    await load
            process = await self._start("", broken=False)
            await self._ready(process)
            self.load.over = True
            await self._finished(load)
            jobs = list(self.load.jobs.values())
            await checks.over_the_socket(self._socket, jobs, self._model)
            process.send_signal(signal.SIGTERM)
            if code := await self._ended(process):
                raise Violation(f"the daemon stopped with exit code {code}; see {self._log}")
        except* Violation as group:
            raise _first(group) from None
        finally:
            load.cancel()
            with suppress(asyncio.CancelledError, Exception, BaseExceptionGroup):
                await load
            self._kill_leftover()
        checks.on_the_disk(self.state, self.lines, jobs)
        if "Traceback" in self._log.read_text(errors="replace"):
            raise Violation(f"something failed inside the daemon; see {self._log}")

    async def _finished(self, load: asyncio.Task[None]) -> None:
        await asyncio.wait({load}, timeout=PATIENCE)
        if not load.done():
            await self._save_tables()
            left = [str(job) for job in self.load.jobs.values() if job.outcome is None and not job.given_up]
            raise Violation(f"{len(left)} tasks have no result after {PATIENCE:.0f} s: {left[:5]}")
        await load

    async def _save_tables(self) -> None:
        """Write the daemon's tables of slots and processes into the folder."""
        with suppress(LlmosError, TimeoutError):
            async with asyncio.timeout(5.0), AsyncClient(self._socket) as llmos:
                rows = [*await llmos.slots(), *await llmos.ps()]
                (self.folder / "hung.txt").write_text("\n".join(map(repr, rows)))

    async def _run_and_die(self, death: Death) -> None:
        full = self.folder / "full"
        full.unlink(missing_ok=True)
        began = time.monotonic()
        process = await self._start(death.faults, broken=death.broken)
        if death.ready:
            await self._ready(process)
        if death.file:
            await asyncio.sleep(death.live / 2)
            full.touch()
        for _ in range(death.drivers):
            await asyncio.sleep(death.live / death.drivers)
            _kill_drivers(process.pid)
        if death.stop:
            await self._sleep(process, 0.1)
            self.load.set_stopping(True)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        driver_died = False
        if "swap." in death.faults:
            driver_died = await self._until_a_driver_died(process, death.live)
        else:
            await self._sleep(process, death.live)
        by_itself = process.returncode is not None
        if death.orderly and not by_itself:
            self.load.set_stopping(True)
            process.send_signal(signal.SIGTERM)
        elif not by_itself:
            process.kill()
        code = await self._ended(process)
        self.times.append((str(death), time.monotonic() - began))
        if death.stop or death.orderly:
            self.load.set_stopping(False)
        if death.orderly and not by_itself:
            self._check_order(code)
            return
        self._note(death, by_itself, driver_died, code)

    def _check_order(self, code: int) -> None:
        """Check the end of a daemon that was asked to stop: its next run must not look for culprits of a crash."""
        db = apsw.Connection(str(self.state / FILE), flags=apsw.SQLITE_OPEN_READONLY)
        clean = next(iter(db.execute("SELECT clean FROM stops")))[0]
        db.close()
        if code or not clean:
            raise Violation(f"an orderly stop ended with {code} and counts as {'a stop' if clean else 'a crash'}")
        self.reached["orderly"] += 1

    def _note(self, death: Death, by_itself: bool, driver_died: bool, code: int) -> None:
        name = death.faults.partition("=")[0] if death.kind in ("point", "write") else death.kind
        if death.kind in ("point", "write") and not (by_itself or driver_died):
            self.missed[name] += 1
            name = "random"
        elif by_itself and code == 0 and death.stop:
            raise Violation(f"the daemon stopped and did not die at {death}")
        elif by_itself and code != -signal.SIGKILL and not (death.may_fail and code == REFUSED):
            raise Violation(f"the daemon ended by itself with {code} ({death}); see {self._log}")
        self.reached[name] += 1

    async def _until_a_driver_died(self, process: asyncio.subprocess.Process, seconds: float) -> bool:
        """Wait for a driver to die at its point and be replaced. Whether it died in time."""
        known = set(_drivers(process.pid))
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.returncode is None:
            now = set(_drivers(process.pid))
            if known - now:
                return True
            known |= now
            await asyncio.sleep(0.01)
        return False

    async def _sleep(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        """Wait until the daemon has ended, or `seconds` have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()

    async def _start(self, faults: str, *, broken: bool) -> asyncio.subprocess.Process:
        self._fragile.write(broken=broken)
        with self._log.open("ab") as log:
            log.write(f"\n---- a start with {VARIABLE}={faults!r}\n".encode())
            log.flush()
            flags = ["--socket", self._socket, "--state", self.state, "--config", self._settings]
            flags += ["--agents", self._fragile.folder]
            self._process = await asyncio.create_subprocess_exec(
                *(LLMOSD, *flags, "--agents", PROGRAMS, "--model", self._model),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {VARIABLE: faults},
            )
        return self._process

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        """Wait until the daemon answers, or has died."""
        until = time.monotonic() + PATIENCE
        while process.returncode is None:
            with suppress(LlmosError):
                async with AsyncClient(self._socket, name="trial") as llmos:
                    await llmos.ping()
                    return
            if time.monotonic() > until:
                raise Violation(f"the daemon did not answer within {PATIENCE:.0f} s; see {self._log}")
            await asyncio.sleep(0.01)

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        try:
            async with asyncio.timeout(PATIENCE):
                return await process.wait()
        except TimeoutError:
            raise Violation(f"the daemon did not end within {PATIENCE:.0f} s; see {self._log}") from None

    def _kill_leftover(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


def _drivers(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def _kill_drivers(pid: int) -> None:
    for driver in _drivers(pid):
        with suppress(ProcessLookupError):
            os.kill(driver, signal.SIGKILL)


def _first(group: BaseExceptionGroup[Violation]) -> Violation:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Violation)
    return error
