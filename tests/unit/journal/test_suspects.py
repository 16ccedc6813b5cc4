"""The order in which tasks restart after deaths of the daemon: only a task that causes them is given up.

Each test simulates runs on a real store. A run ends when the time of a guilty task is over, or when all trials are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log2
from pathlib import Path

import pytest

from kernel.journal import changes, suspects
from kernel.journal.settings import FILE
from kernel.journal.store import Store, open_store
from tests.support.journal_desk import end, task

ATTEMPTS = 5
PAUSE = 1.0  # seconds between the death of a daemon and the next start


class Daemon:
    """Simulates runs of the daemon. `guilty` maps the number of a task to the seconds after which it kills a run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr(suspects.time, "time", lambda: self.now)
        self.store: Store = open_store(folder / FILE, "normal")
        self.guilty: dict[int, float] = {}
        self.runs = 0
        self.given_up: list[int] = []
        self.began: list[set[int]] = []  # the tasks that began in each run
        self.submit_in_run: Callable[[], int | None] = lambda: None  # a client that submits a task in each run
        self.start()

    def start(self) -> None:
        self.runs += 1
        self.plan = self.store.begin_run(ATTEMPTS)
        lost = [number for number, _ in self.store.out_of_attempts(ATTEMPTS)]
        self.given_up += lost
        self.store.finish([end(number, "failed", ended=self.now) for number in lost])
        pending = [one.id for one in self.store.pending()]
        self.held = {number: self.plan.held[number] for number in pending if number in self.plan.held}
        self.running = {number: self.now for number in pending if number not in self.held}
        self.began.append(set(self.running))

    def accept(self, count: int) -> list[int]:
        numbers = [one.id for one in self.store.accept([task() for _ in range(count)])]
        self.running.update(dict.fromkeys(numbers, self.now))
        return numbers

    def run(self) -> bool:
        """Live until a guilty task kills the daemon, and start again; False if all trials are over without that."""
        if not self.plan.alone:
            self.submit_in_run()
        trial = set(self.running) if self.plan.crashes >= suspects.SHARED else set[int]()
        while True:
            over = self.now + self.plan.trial_seconds if trial or self.held else float("inf")
            deaths = [began + self.guilty[one] for one, began in self.running.items() if one in self.guilty]
            death = min(deaths, default=float("inf"))
            if death <= over and death < float("inf"):
                self.now = death + PAUSE
                self.start()
                return True
            if over == float("inf"):
                return False
            self.now = over
            self.store.apply(map(changes.TaskCleared, trial))
            trial = {number for number, group in self.held.items() if group == min(self.held.values())}
            self.store.apply([changes.TrialBegan(self.now)] if trial else [])
            self.store.apply(map(changes.TaskBegan, trial))
            for number in trial:
                del self.held[number]
                self.running[number] = self.now
            self.began[-1] |= trial
            if self.plan.alone:
                self.submit_in_run()

    def kill(self, after: float = 1.0) -> None:
        """An operator kills the daemon."""
        self.now += after + PAUSE
        self.start()

    def run_until_quiet(self, most: int) -> None:
        while self.run():
            assert self.runs <= most


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, monkeypatch)
    yield daemon
    daemon.store.close()


@pytest.mark.parametrize("position", [0, 20, 40])
@pytest.mark.parametrize("seconds", [0.0, 5.0, 200.0])
def test_only_the_task_that_kills_the_daemon_is_given_up(daemon: Daemon, position: int, seconds: float) -> None:
    tasks = daemon.accept(41)
    daemon.guilty = {tasks[position]: seconds}
    daemon.run_until_quiet(30)
    assert daemon.given_up == [tasks[position]]
    assert set(daemon.running) == set(tasks) - {tasks[position]}
    assert not daemon.held


def test_of_a_thousand_tasks_the_guilty_one_is_found_in_as_many_runs_as_a_binary_search_takes(daemon: Daemon) -> None:
    tasks = daemon.accept(1000)
    daemon.guilty = {tasks[777]: 0.5}
    daemon.run_until_quiet(100)
    assert daemon.given_up == [tasks[777]]
    assert daemon.runs <= ATTEMPTS + log2(1000) + 2


def test_two_guilty_tasks_are_both_given_up_and_no_other(daemon: Daemon) -> None:
    tasks = daemon.accept(40)
    daemon.guilty = {tasks[3]: 0.0, tasks[30]: 2.0}
    daemon.run_until_quiet(40)
    assert sorted(daemon.given_up) == [tasks[3], tasks[30]]
    assert len(daemon.running) == 38


def test_a_client_that_submits_a_guilty_task_in_each_run_costs_no_other_task_its_attempts(daemon: Daemon) -> None:
    tasks = daemon.accept(8)
    left = 12

    def submit() -> None:
        nonlocal left
        if left:
            left -= 1
            daemon.guilty[daemon.accept(1)[0]] = 0.5

    daemon.submit_in_run = submit
    daemon.run_until_quiet(300)
    assert sorted(daemon.given_up) == sorted(daemon.guilty)
    assert set(daemon.running) == set(tasks)


def test_innocent_tasks_survive_an_operator_who_kills_the_daemon_a_few_times(daemon: Daemon) -> None:
    tasks = daemon.accept(40)
    for _ in range(ATTEMPTS + 2):
        daemon.kill()
    assert not daemon.run()
    assert daemon.given_up == []
    assert set(daemon.running) == set(tasks)


def test_a_durable_task_that_makes_progress_in_each_run_is_given_up_if_others_wait_for_it(daemon: Daemon) -> None:
    tasks = daemon.accept(4)
    daemon.guilty = {tasks[1]: 0.5}
    for _ in range(20):
        daemon.store.apply([changes.TaskProgressed(tasks[1])])
        if not daemon.run():
            break
    assert daemon.given_up == [tasks[1]]


@pytest.mark.parametrize("what", ["an orderly stop", "a long run"])
def test_after_an_orderly_stop_or_a_long_run_the_next_crash_is_the_first_of_a_row(daemon: Daemon, what: str) -> None:
    daemon.accept(4)
    daemon.kill()
    if what == "an orderly stop":
        daemon.store.end_run()
        daemon.start()
    else:
        daemon.store.apply([changes.DaemonHealthy()])
    daemon.kill()
    assert daemon.held == {}
    daemon.kill()
    assert len(daemon.held) == 2


def test_the_attempts_of_a_task_that_is_held_back_count_only_its_starts(daemon: Daemon) -> None:
    tasks = daemon.accept(40)
    daemon.guilty = {tasks[0]: 0.5}
    daemon.run_until_quiet(30)
    for number in tasks[1:]:
        row = daemon.store.find(number)
        assert row is not None
        assert row.attempt == 1 + sum(number in began for began in daemon.began[1:])


def test_a_failed_commit_that_is_repeated_counts_one_start(daemon: Daemon) -> None:
    tasks = daemon.accept(2)
    daemon.kill()
    daemon.kill()
    (held,) = daemon.held
    before = daemon.store.find(held)
    daemon.store.apply([changes.TaskBegan(held)])
    daemon.store.apply([changes.TaskBegan(held)])
    after = daemon.store.find(held)
    assert held in tasks
    assert before is not None
    assert after is not None
    assert after.attempt == before.attempt + 1


def test_no_task_is_held_back_if_the_limit_of_attempts_is_very_high(daemon: Daemon) -> None:
    daemon.accept(4)
    for _ in range(4):
        assert daemon.store.begin_run(1_000_000) == suspects.RestartPlan()


DAY = 86_400.0


@pytest.mark.parametrize("orderly", [False, True])
def test_a_task_that_runs_for_months_survives_deaths_that_are_far_apart(daemon: Daemon, orderly: bool) -> None:
    """Nights with an orderly stop make each run shorter than a day."""
    daemon.accept(1)
    for _ in range(3 * ATTEMPTS):
        if orderly:
            daemon.now += DAY / 2
            daemon.store.end_run()
            daemon.start()
        daemon.kill(after=DAY / 2 if orderly else 30 * DAY)
    assert daemon.given_up == []


def test_a_task_that_kills_the_daemon_after_hours_is_given_up(daemon: Daemon) -> None:
    tasks = daemon.accept(1)
    daemon.guilty = {tasks[0]: 6 * 3600.0}
    daemon.run_until_quiet(ATTEMPTS + 1)
    assert daemon.given_up == tasks


def test_a_task_that_makes_progress_is_not_given_up_because_another_waits_for_its_program(daemon: Daemon) -> None:
    durable, broken = daemon.accept(2)

    def restart() -> None:
        """Both tasks begin, perhaps after a trial of the other, and the program of the second one is broken."""
        daemon.store.apply([changes.TaskCleared(durable)] if durable not in daemon.held else [])
        daemon.store.apply(map(changes.TaskBegan, daemon.held))
        daemon.store.apply([changes.TaskWaits(broken), changes.TaskWaits(broken), changes.TaskProgressed(durable)])

    for _ in range(2 * ATTEMPTS):
        restart()
        daemon.kill()
    assert daemon.given_up == []
    row = daemon.store.find(broken)
    assert row is not None
    assert row.attempt == 0
