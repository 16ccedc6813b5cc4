"""Generations of durable agents continue in the next run of the daemon, or are recomputed, with the same tokens."""

from __future__ import annotations

import signal
from functools import partial

import pytest

from ipc.syscalls import Wait
from tests.support.simulated import text_of

AGENTS = '''
from llmosd import Context, agent

@agent(durable=True)
async def story(ctx: Context, tokens: int, seed: int | None = None, temperature: float = 1.0) -> list:
    """Two texts of one call."""
    made = await ctx.generate("Tell me a story.", max_tokens=tokens, seed=seed, temperature=temperature, samples=2)
    return [one.text for one in made]
'''

SLOW = "[models.simulated]\nslots = 2\noptions = {step_seconds = 0.01}\n"
TIGHT = "[models.simulated]\nslots = 2\noptions = {step_seconds = 0.01, token_bytes = 1000, kv_memory = 250_000}\n"
TOKENS = 200


def texts_of(seed):
    """The two texts of the simulated model."""
    return [text_of(seed + sample, TOKENS) for sample in (0, 1)]


def slots(client, model="simulated"):
    return next((row for row in client.slots() if row.model == model), None)


def has_made(client, pid, tokens, model="simulated"):
    """Whether each text of process `pid` has so many tokens."""
    row = slots(client, model)
    made = [one.generated_tokens for one in row.sequences if one.pid == pid] if row is not None else []
    return len(made) == 2 and min(made) >= tokens


@pytest.fixture
def launch(launch):
    """Starts daemons as elsewhere, with a short time to drain."""
    return partial(launch, environment={"LLMOSD_DRAIN_SECONDS": "0.1"})


def files(folder):
    return [path.name for path in (folder / "state" / "swap").rglob("*.kv")]


def stopped_midway(launch, eventually):
    """Start a story, and stop its daemon in order when a part is made; return the task."""
    daemon = launch(SLOW)
    with daemon.client() as client:
        task = client.submit("story", {"tokens": TOKENS, "seed": 7}, detach=True)
        eventually(lambda: has_made(client, task.pid, 20), "a part is made")
        daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0
    return task


def test_an_orderly_stop_puts_aside_what_runs_and_the_next_start_goes_on(launch, folder, eventually):
    task = stopped_midway(launch, eventually)
    assert len(files(folder)) == 2
    with launch(SLOW).client() as client:
        assert client.attach(task.id).result(60) == texts_of(7)
        row = slots(client)
        assert (row.restores, row.recomputations) == (2, 0)
        assert row.tokens <= 2 * (TOKENS - 20)
        usage = client.request(Wait(task.pid)).usage
        assert usage.generated_tokens == 2 * TOKENS
        eventually(lambda: not files(folder), "no file is left")


def test_a_generation_that_lies_on_disk_when_the_daemon_is_killed_comes_back(launch, folder, eventually):
    daemon = launch(TIGHT)
    with daemon.client() as client:
        # Two texts of 100 tokens each leave less memory than the third sequence needs.
        paused = client.submit("story", {"tokens": 100, "seed": 7}, detach=True)
        eventually(lambda: has_made(client, paused.pid, 20), "a part is made")
        client.suspend(paused.pid)
        other = client.submit("generate", {"prompt": "x", "max_tokens": 240})
        eventually(lambda: slots(client).swapped == 2, "on disk")
        eventually(lambda: sum(name.count(".") > 1 for name in files(folder)) == 2, "checkpoints are on disk")
        assert other.result(60)
        client.run("echo", {"value": 1})  # once this is accepted, all earlier requests to the journal are on disk
        daemon.kill()
    with launch(TIGHT).client() as client:
        eventually(lambda: [row.state for row in client.ps() if row.pid == paused.pid] == ["suspended"], "it is back")
        eventually(lambda: len(files(folder)) == 2, "the other files of the dead daemon are removed")
        client.resume(paused.pid)
        assert [text[:50] for text in client.attach(paused.id).result(60)] == [text[:50] for text in texts_of(7)]
        assert (slots(client).restores, slots(client).recomputations) == (2, 0)
        eventually(lambda: not files(folder), "no file is left")


def test_a_damaged_file_is_refused_and_the_text_made_anew(launch, folder, eventually):
    task = stopped_midway(launch, eventually)
    for path in (folder / "state" / "swap").rglob("*.kv"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with launch(SLOW).client() as client:
        assert client.attach(task.id).result(60) == texts_of(7)
        assert (slots(client).restores, slots(client).recomputations) == (0, 2)


@pytest.mark.model
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_the_embedded_model_goes_on_with_the_tokens_of_a_run_that_never_stopped(launch, eventually, end):
    pytest.importorskip("transformers", reason="the embedded model runs on transformers (extra `local`)")
    model = ("--model", "smollm2")
    call = {"tokens": 40, "seed": 11, "temperature": 0.9}
    daemon = launch("", *model)
    with daemon.client() as client:
        never_stopped = client.run("story", call)
        task = client.submit("story", call, detach=True)
        eventually(lambda: has_made(client, task.pid, 5, "smollm2"), "a part is made")
        client.suspend(task.pid)
        if end == "killed":
            daemon.kill()
        else:
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(60) == 0
    with launch("", *model).client() as client:
        eventually(lambda: [row.state for row in client.ps() if row.pid == task.pid] == ["suspended"], "it is back")
        client.resume(task.pid)
        assert client.attach(task.id).result(120) == never_stopped
        row = slots(client, "smollm2")
        assert (row.restores, row.recomputations) == ((2, 0) if end == "stopped" else (0, 0))
