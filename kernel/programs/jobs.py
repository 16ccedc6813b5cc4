"""Jobs: pieces of work that may never end, such as running a file of a user or looking at a disk.

Used by the program loader and for imports on the event loop. Each job has a daemon thread of its own, so a job that
hangs holds nothing but this thread. Code of the file that runs for `LIMIT` seconds is interrupted. A call of C code
cannot be interrupted: it holds its thread until it returns, and then its outcome counts. This module never loads
anything itself.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from ipc.errors import AgentFailed, Busy
from kernel.lib import failures
from kernel.lib.worker_threads import DaemonThreads
from kernel.programs.traces import is_importing, place_in

PATIENCE = 1.0  # seconds that a look waits for a job, unless others hang already: see `LoaderJobs.do`
LIMIT = 60.0  # seconds after which the load of a file fails
GRACE = 1.0  # seconds in which an interrupted thread has to notice it; one that does not is in C code
MAX_REMEMBERED = 256  # jobs of which a loader remembers the outcome
MAX_FILES = 256  # files that have not ended; one that never ends holds its thread for good
MAX_LOOKS = 64  # looks at disks that have not ended

T = TypeVar("T")

_threads = DaemonThreads("llmosd loader", MAX_FILES + MAX_LOOKS)
_running: set[LoaderJob[Any]] = set()


class TimeLimit(BaseException):
    """Raised in the code of a file that has run for `LIMIT` seconds. `except Exception` does not catch it."""


class NotYet(Exception):
    """Jobs of which the caller needs one go on. `settled` has a result as soon as one of them is settled."""

    def __init__(self, jobs: Iterable[LoaderJob[Any]]) -> None:
        super().__init__()
        self.jobs = list(jobs)
        self.settled: Future[None] = Future()
        self.settled.set_running_or_notify_cancel()
        for job in self.jobs:
            job.settled.add_done_callback(self._settle)

    def _settle(self, _: Future[None]) -> None:
        with suppress(InvalidStateError):  # another job was first
            self.settled.set_result(None)


class Settled(Executor):
    """Lets a loop wait for a future of another thread as for a call in a thread, which the loops of tests count."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Ignores `fn`: the future that is there."""
        return self._future


class LoaderJob(Generic[T]):
    """Work in a thread of its own. `what` names the file or folder in errors. `began`: when, by `time.monotonic`.

    `folder`: the folder of a job that only looks at the disk; None if it runs a file. `settled` gets a result when the
    job has ended, or exceeds its limit.
    """

    def __init__(self, what: str, work: Callable[[], T], folder: Path | None = None) -> None:
        """Start the thread. Raises `Busy` if too many jobs have not ended, or if the system has no thread."""
        self.what = what
        self.began = time.monotonic()
        self.ended = False
        self.interrupted = False  # ended by `TimeLimit`
        self._raised = False  # whether a `TimeLimit` was sent to the thread
        self.settled: Future[None] = Future()
        self.error: BaseException | None = None
        self._value: T | None = None
        self._thread: int | None = None
        self._changed = threading.Condition()
        self._timer: threading.Timer | None = None
        self.folder = folder
        rivals = [job for job in list(_running) if (job.folder is None) == (folder is None)]
        if len(rivals) >= (MAX_FILES if folder is None else MAX_LOOKS):
            things = "files have begun to run" if folder is None else "looks at files have begun"
            raise Busy(
                f"{len(rivals)} {things} and not ended, which is the limit. One of them: {rivals[0].described()}. "
                "Correct or remove these files, and restart the daemon",
                retry_after=1.0,
            )
        _running.add(self)
        try:
            _threads.submit(copy_context().run, self._run, work)
        except RuntimeError as error:
            _running.discard(self)
            raise Busy(f"{what}: cannot start a thread: {error}; try again later", retry_after=1.0) from None

    @property
    def age(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self.began

    @property
    def overdue(self) -> bool:
        """Whether the job exceeds its limit, so that nothing waits for it any more."""
        return self.settled.done() and not self.ended

    def described(self) -> str:
        """Says how long the work has been running, and at which line it is."""
        thread = self._thread
        place = "" if thread is None else place_in(thread)
        return f"{self.what} has been running for {self.age:.0f} s" + (f", at {place}" if place else "")

    def wait(self, seconds: float) -> bool:
        """Whether the job ends within `seconds`. If not, its time limit applies from then on."""
        with self._changed:
            if self._changed.wait_for(lambda: self.ended, max(seconds, 0)):
                return True
            if self._timer is None:
                self._start_timer(LIMIT - self.age)
            return False

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(max(seconds, 0), self._time_out)
        self._timer.daemon = True
        self._timer.start()

    def refuse(self) -> NoReturn:
        """Raise the error of a caller that needs this job, which goes on."""
        if self.overdue:
            raise Busy(f"{self.described()}; it may never end", retry_after=LIMIT)
        raise NotYet([self])

    def result(self) -> T:
        """The value that the work returned. Raises the error that it raised."""
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]

    def _run(self, work: Callable[[], T]) -> None:
        """The code of the thread."""
        self._thread = threading.get_ident()
        try:
            try:
                self._value = work()
            except BaseException as error:
                self.error = error
            self._end()
            if self._raised:
                _notice_errors()
        except TimeLimit as error:  # it arrived after the work
            if not self.ended and self._value is None and self.error is None:
                self.error = error
        self._end()

    def _end(self) -> None:
        """Nothing interrupts the thread from now on."""
        with self._changed:
            self.ended = True
            _running.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            self._changed.notify_all()
            self._settle()

    def _time_out(self) -> None:
        """Interrupt the code of the file, unless it imports a package: half a package might not load again."""
        with self._changed:
            thread = self._thread
            if not self.ended and thread is not None and place_in(thread) and not is_importing(thread):
                self.interrupted = self._raised = True
                _raise_in(thread, TimeLimit)
                if not self._changed.wait_for(lambda: self.ended, GRACE):
                    self.interrupted = False
                    _raise_in(thread, None)
                    _notice_errors()
            if not self.ended:
                self._settle()
                self._start_timer(LIMIT)  # it may compute later

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


class LoaderJobs:
    """The jobs of one loader that have not ended or whose outcome nobody took, by key."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, LoaderJob[Any]] = {}

    def look(self, key: Hashable, folder: Path, work: Callable[[], T], since: float) -> T:
        """`do` for a look at a disk. A folder whose disk hangs holds few threads: another look there does not begin."""
        for job in list(self._jobs.values()):
            if job.folder == folder and not job.ended and job.age > PATIENCE:
                job.refuse()
        return self.do(key, str(folder), work, since, folder)

    def do(self, key: Hashable, what: str, work: Callable[[], T], since: float = 0.0, folder: Path | None = None) -> T:
        """The result of `work`, or of the job of this `key` that began after `since`.

        Raises `NotYet` if it takes longer than `PATIENCE`, which all jobs that hang share: the second waits a quarter
        of it, the third a ninth, so a look at any number of files that hang takes less than two seconds. Never waits
        for a job that goes on from an earlier call. After `LIMIT` raises `Busy` while it goes on, and always
        `AgentFailed` if it was interrupted.
        """
        job: LoaderJob[T] | None = self._jobs.get(key)
        if job is None or (job.ended and job.began < since):
            hanging = sum(not other.ended for other in self._jobs.values())
            if len(self._jobs) >= MAX_REMEMBERED:
                self._jobs = {known: other for known, other in self._jobs.items() if not other.ended}
            job = self._jobs[key] = LoaderJob(what, work, folder)
            job.wait(PATIENCE / (1 + hanging) ** 2)
        if not job.ended:
            job.refuse()
        if job.error is not None and (job.interrupted or isinstance(job.error, TimeLimit)):
            place = failures.place(job.error)
            raise AgentFailed(
                f"{what} ran for {LIMIT:g} s and was interrupted, at {place}; change it to try again"
            ) from job.error
        del self._jobs[key]
        return job.result()


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise `error` in a thread when it next runs Python code; None revokes an error that it has not noticed yet.

    Python 3.11 then looks for errors at every call and in every loop of all threads until one has noticed an error:
    even for None.
    """
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


def _notice_errors() -> None:
    """Let this thread notice an error, its last one, so that Python looks for none at every call any more."""
    with suppress(TimeLimit):
        _raise_in(threading.get_ident(), TimeLimit)
        while True:
            pass
