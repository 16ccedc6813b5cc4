"""Model slots on a real daemon: priorities, calls over the socket, paging, residency, and drivers that go wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from functools import partial

import psutil
import pytest

from ipc.syscalls import Constraint, EmbedTexts, Generate, GetStats, Sampling, ScoreText
from llmosd import Completion, DriverFailed, InvalidConstraint, ModelLoadFailed, Score
from tests.support.simulated import text_of

AGENTS = """
from typing import Any
import msgspec
from llmosd import Context, agent

class City(msgspec.Struct):
    name: str
    people: int

@agent
async def typed(ctx: Context) -> Any:
    city = await ctx.chat([{"role": "user", "content": "a city"}], schema=City)
    assert type(city) is City
    return [city, await ctx.generate("x", choices=["yes", "no"]), await ctx.score("a b", ["c", "d e"]),
            [len(vector) for vector in await ctx.embed(["a", "b"])]]

@agent
async def three(ctx: Context) -> Any:
    return [one.text for one in await ctx.generate("x", samples=3, seed=5, max_tokens=4)]
"""


def slots(client, model="simulated"):
    return next(row for row in client.slots() if row.model == model)


def resident_bytes(process):
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0  # it has ended meanwhile


def driver_deaths(client, pid):
    """How the drivers of a process died, according to its log."""
    return [line.fields["how"] for line in client.logs(pid) if "how" in line.fields]


@pytest.fixture
def configured(launch, folder):
    """Starts daemons with given settings and a cache of their own."""
    return partial(launch, environment={"LLMOSD_CACHE": str(folder / "cache")})


def options(**values):
    return "options = {" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + "}\n"


# ---- calls


def test_a_client_reaches_all_that_a_model_can_do(configured):
    with configured("").client() as client:
        assert client.run("typed")[:2] == [{"name": "", "people": 0}, "yes"]
        assert client.run("typed")[3] == [8, 8]
        assert client.run("three") == [text_of(seed, 4) for seed in (5, 6, 7)]
        completions = client.request(Generate("x", None, Sampling(max_tokens=3, seed=1, logprobs=True), samples=2))
        assert [completion.text for completion in completions] == [text_of(seed, 3) for seed in (1, 2)]
        assert all(type(one) is Completion and len(one.logprobs) == 3 for one in completions)
        assert client.request(Generate("x", None, Sampling(max_tokens=3, seed=1))) == text_of(1, 3)
        scores = client.request(ScoreText("a b", ["c", "d e"]))
        assert [type(score) for score in scores] == [Score, Score]
        assert [score.tokens for score in scores] == [1, 2]
        (vector,) = client.request(EmbedTexts(["a"]))
        assert math.hypot(*vector) == pytest.approx(1.0)
        choices = Constraint("choices", '["well", "ill"]')
        assert client.request(Generate("x", None, Sampling(constraint=choices))) == "well"
        with pytest.raises(InvalidConstraint, match="JSON object"):
            client.request(Generate("x", None, Sampling(constraint=Constraint("schema", "["))))
        assert client.run("ask", {"question": "q", "schema": {"const": 3}}) == 3
        assert client.run("ask", {"question": "q", "choices": ["a", "b"]}) == "a"


def test_an_urgent_task_overtakes_and_the_other_goes_on(configured, eventually):
    daemon = configured("[models.simulated]\nslots = 1\n" + options(step_seconds=0.005))
    with daemon.client() as other:  # nobody reads the tokens of `calm`, which goes on until it is killed
        calm = other.submit("generate", {"prompt": "x", "max_tokens": 8_000, "seed": 1}, detach=True).pid
    with daemon.client() as client:
        eventually(lambda: client.slots() and slots(client).used == 1, "it runs")
        urgent = client.submit("generate", {"prompt": "x", "max_tokens": 10, "seed": 2}, priority=5)
        assert urgent.result() == text_of(2, 10)
        (row,) = slots(client).sequences
        assert (row.pid, row.preemptions) == (calm, 1)
        assert "PREEMPTED" in daemon.llmos("slots").stdout
        eventually(lambda: slots(client).sequences[0].generated_tokens > row.generated_tokens, "it goes on")
        low = client.submit("generate", {"prompt": "x", "max_tokens": 10, "seed": 3}, priority=-5)
        eventually(lambda: slots(client).queued == 1, "it waits")
        client.nice(low.pid, 6)
        assert low.result() == text_of(3, 10)
        assert slots(client).sequences[0].preemptions == 2
        client.kill(calm)


# ---- drivers that go wrong


@pytest.mark.parametrize(
    ("settings", "fault", "cause"),
    [
        ("step_timeout = 1.5\n", {"hang_after": 30}, "hung: said nothing for"),
        ("", {"exit_after": 30}, "exit code 3"),
        ("", {"leak": 5_000_000}, "leaks memory: takes"),
    ],
)
def test_a_driver_that_goes_wrong_is_named_and_replaced(configured, settings, fault, cause):
    settings = f"[resources]\nleak_margin = 150_000_000\n[models.simulated]\n{settings}"
    with configured(settings + options(step_seconds=0.03, **fault)).client() as client:
        task = client.submit("generate", {"prompt": "x", "max_tokens": 70, "seed": 1})
        assert task.result() == text_of(1, 70)
        assert driver_deaths(client, task.pid)
        assert all(how.startswith(cause) for how in driver_deaths(client, task.pid))
        assert slots(client).restarts == len(driver_deaths(client, task.pid))


def test_a_driver_that_is_stopped_from_outside_is_a_driver_that_hangs(configured, eventually):
    daemon = configured("[models.simulated]\nstep_timeout = 1.5\n" + options(step_seconds=0.01))
    with daemon.client() as client:
        task = client.submit("generate", {"prompt": "x", "max_tokens": 200, "seed": 1})
        eventually(lambda: client.slots() and slots(client).tokens > 5, "it runs")
        stopped = slots(client).driver_pid
        os.kill(stopped, signal.SIGSTOP)
        assert task.result(timeout=60) == text_of(1, 200)
        assert not psutil.pid_exists(stopped)
        assert "hung" in driver_deaths(client, task.pid)[0]
        assert "hung" in daemon.log


def test_a_load_that_hangs_is_named_and_holds_up_nobody(configured):
    settings = "[models.simulated]\n"
    for name, seconds in (("stuck", 600), ("late", 0.7)):
        settings += f"[models.{name}]\ndriver = 'simulated'\nload_timeout = {seconds}\n{options(hang_load=True)}"
    with configured(settings).client() as client:
        held = client.submit("generate", {"prompt": "x", "model": "stuck"})
        assert client.run("generate", {"prompt": "x", "max_tokens": 5, "seed": 1}) == text_of(1, 5)
        assert held.pid in [row.pid for row in client.ps()]
        with pytest.raises(ModelLoadFailed, match="did not load within"):
            client.run("generate", {"prompt": "x", "model": "late"})
        client.kill(held.pid)


def test_numbers_that_are_none_and_endless_deaths_are_failed_by_name(configured):
    bad = options(nan=True) + "[models.deadly]\ndriver = 'simulated'\n" + options(exit_after=2)
    with configured("[models.simulated]\n" + bad).client() as client:
        with pytest.raises(DriverFailed, match="NaN"):
            client.request(EmbedTexts(["x"]))
        with pytest.raises(DriverFailed, match="died 4 times"):
            client.run("generate", {"prompt": "x", "model": "deadly", "max_tokens": 100})
        assert client.run("generate", {"prompt": "x", "max_tokens": 5, "seed": 1}) == text_of(1, 5)


# ---- memory


TIGHT = "[models.simulated]\nslots = 2\n" + options(step_seconds=0.01, token_bytes=1000, kv_memory=250_000)
LONG = 240  # tokens: nearly all of the KV memory, so that two such sequences do not fit


def submit(client, seed):
    return client.submit("generate", {"prompt": "x", "max_tokens": LONG, "seed": seed})


def test_a_suspended_generation_is_paged_to_disk_and_comes_back(configured, folder, eventually):
    daemon = configured(TIGHT)
    swap = folder / "state" / "swap"
    with daemon.client() as client:
        first, second = (submit(client, seed) for seed in (1, 2))
        eventually(lambda: client.slots() and slots(client).tokens > 40, "both have KV that a third one needs")
        client.suspend(first.pid)
        third = submit(client, 3)
        eventually(lambda: slots(client).swapped == 1, "on disk")
        assert [path.suffix for path in swap.rglob("*") if path.is_file()] == [".kv"]
        assert {oct(path.stat().st_mode & 0o777) for path in (swap, *swap.iterdir())} == {"0o700"}
        assert "disk" in daemon.llmos("slots").stdout
        client.resume(first.pid)
        for seed, task in enumerate((first, second, third), 1):
            assert task.result() == text_of(seed, LONG)
        assert slots(client).recomputations == 0
        eventually(lambda: not [path for path in swap.rglob("*") if path.is_file()], "no file is left")


def test_files_of_a_daemon_that_was_killed_are_removed_at_the_next_start(configured, folder, eventually):
    swap = folder / "state" / "swap"
    daemon = configured(TIGHT)
    with daemon.client() as client:
        tasks = [submit(client, seed) for seed in (1, 2)]
        eventually(lambda: client.slots() and slots(client).tokens > 40, "both have KV that a third one needs")
        client.suspend(tasks[0].pid)
        tasks.append(submit(client, 3))
        eventually(lambda: slots(client).swapped == 1, "on disk")
        daemon.kill()
    assert any(path.is_file() for path in swap.rglob("*"))
    configured(TIGHT)
    eventually(lambda: not any(swap.rglob("*.kv")), "old files removed")


TWO_MODELS = """
[resources]
memory = 150_000_000
collate = 0.8
[models.simulated]
options = {step_seconds = 0.01, load_seconds = 0.1, weights = 80_000_000}
[models.other]
driver = "simulated"
keep_alive = 1.0
options = {step_seconds = 0.01, load_seconds = 0.1, weights = 80_000_001}
"""


def test_two_models_take_turns_under_a_budget_that_holds_one(configured, eventually):
    daemon = configured(TWO_MODELS)
    with daemon.client() as client:
        for model in ("simulated", "other"):  # measures both, so that from now on neither is loaded beside the other
            assert client.run("generate", {"prompt": "x", "model": model, "max_tokens": 2, "seed": 1}) == text_of(1, 2)
        models = ("simulated", "other") * 3
        tasks = [
            client.submit("generate", {"prompt": "x", "model": model, "max_tokens": 120, "seed": seed})
            for seed, model in enumerate(models)
        ]
        most, waited = 0, ""
        while client.ps():
            most = max(most, sum(map(resident_bytes, psutil.Process(daemon.pid).children())))
            waited = waited or next((row.detail for row in client.slots() if row.state == "waiting"), "")
            time.sleep(0.05)
        for seed, task in enumerate(tasks):
            assert task.result() == text_of(seed, 120)
        assert most <= 150_000_000 * 1.1
        assert waited.startswith("for memory: ")
        assert sum(row.recomputations for row in client.slots()) == 0
        machine = client.request(GetStats()).machine
        assert machine["drivers_budget"] == 150_000_000
        if slots(client, "other").state == "ready":
            eventually(lambda: slots(client, "other").state == "unloaded", "unloaded after its keep-alive")
            eventually(lambda: len(psutil.Process(daemon.pid).children()) <= 1, "its driver ends")
        assert "drivers memory" in daemon.llmos("stats").stdout
