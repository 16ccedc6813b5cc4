"""The embedded model through a real daemon: a question answered, streamed, killed, suspended, and a driver lost."""

from __future__ import annotations

import argparse
import asyncio
import collections
import datetime
import decimal
import email.message
import logging
import os
import pathlib
import re
import shutil
import signal
import socket

import pytest

from ipc.errors import ContextOverflow, Killed
from ipc.syscalls import EmbedTexts, Generate, Sampling, ScoreText
from llmosd import State, Token
from tests.support.daemon import RunningDaemon
from tests.support.paths import ROOT

pytestmark = pytest.mark.model
pytest.importorskip("transformers", reason="the embedded model runs on transformers (extra `local`)")

QUESTION = {"question": "What is the capital of France?"}
STORY = {"question": "Tell me a long story about a dragon.", "max_tokens": 3000}
DEFAULT_LIMIT = 30  # tokens of a reply whose call sets no limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("d", numbered=True)


@pytest.fixture(scope="module")
def daemon(folder):
    """One daemon for all tests here: loading takes seconds."""
    config = folder / "llmosd.toml"
    config.write_text(f"[models.smollm2]\nmax_tokens = {DEFAULT_LIMIT}\n")
    daemon = RunningDaemon(folder, "--config", str(config))
    yield daemon.wait_until_ready()
    daemon.stop()


@pytest.fixture
def client(daemon):
    with daemon.client() as client:
        yield client
        assert client.ping("unharmed") == "unharmed"


def used(client):
    return client.slots()[0].used


def test_answers_a_question_and_streams_it(client):
    events = list(client.submit("ask", QUESTION).events())
    text = "".join(event.text for event in events if isinstance(event, Token))
    assert "Paris" in text
    assert text == events[-1].value
    assert any(isinstance(event, State) for event in events)


def test_the_command_answers_all_questions_of_the_front_page_and_the_demonstration_rightly(daemon):
    shown = "".join((ROOT / name).read_text() for name in (".ci/demo", "README.md", "ARCHITECTURE.md"))
    asked = set(re.findall(r'llmos run .*"(What is the capital of \w+\?)"', shown))
    assert {"What is the capital of France?", "What is the capital of Japan?"} <= asked
    capitals = {"France": "Paris", "Germany": "Berlin", "Japan": "Tokyo"}
    for question in asked:
        out = daemon.llmos("run", "ask", question)
        assert (out.returncode, capitals[question[23:-1]] in out.stdout) == (0, True)


def test_a_reply_that_the_default_limit_cuts_is_reported_on_standard_error_and_in_the_log(daemon, client):
    out = daemon.llmos("run", "ask", STORY["question"])
    warning = f"the reply was cut after {DEFAULT_LIMIT} tokens, the default limit; set max_tokens"
    assert (out.returncode, out.stderr.count(warning), out.stdout.count(warning)) == (0, 1, 0)
    ended = client.submit("ask", {"question": STORY["question"]})
    ended.result()
    assert [line.event.startswith(warning) for line in client.logs(ended.pid)] == [True]
    chosen = daemon.llmos("run", "ask", STORY["question"], "-a", "max_tokens=5")
    assert (chosen.returncode, "cut" in chosen.stderr) == (0, False)


def test_a_full_reply_states_its_reason_and_its_lengths(client):
    whole = client.run("ask", QUESTION | {"full": True})
    assert (whole["reason"], whole["tokens"], "Paris" in whole["text"]) == ("stop", len(whole["ids"]), True)
    cut = client.run("ask", QUESTION | {"full": True, "max_tokens": 2})
    assert (cut["reason"], cut["tokens"], cut["prompt_tokens"]) == ("length", 2, whole["prompt_tokens"])
    assert cut["prompt_tokens"] > 10


def test_generate_and_summarize(client):
    assert client.run("generate", {"prompt": "The capital of France is", "max_tokens": 5})
    text = "The river Seine flows through Paris. Paris is the capital of France. It has two million inhabitants."
    assert client.run("summarize", {"text": text, "max_tokens": 40})


def test_a_reply_is_what_it_has_to_be_and_scores_and_vectors_make_sense(client):
    schema = {"type": "object", "required": ["yes"], "properties": {"yes": {"type": "boolean"}}}
    question = {"question": "Is the sky blue?", "max_tokens": 40}
    assert client.run("ask", question | {"schema": schema | {"additionalProperties": False}})["yes"] in (True, False)
    assert client.run("ask", question | {"choices": ["blue", "green"]}) in ("blue", "green")
    assert re.fullmatch("[0-9]{3}", client.run("generate", {"prompt": "A number: ", "regex": "[0-9]{3}"}))
    paris, berlin = client.request(ScoreText("The capital of France is", [" Paris", " Berlin"]))
    assert paris.logprob > berlin.logprob
    cat, kitten, law = client.request(EmbedTexts(["a cat", "a kitten", "the tax law of 1984"]))
    assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(a * b for a, b in zip(cat, law, strict=True))
    one, two = client.request(
        Generate("x", None, Sampling(max_tokens=4, seed=1, temperature=1, logprobs=True), samples=2)
    )
    assert len(one.logprobs) == len(two.ids) == 4
    assert one.text != two.text


def test_stop_strings_and_seeds_per_call(client):
    counted = client.run("generate", {"prompt": "one, two, three,", "max_tokens": 20, "stop": "five"})
    assert "five" not in counted
    drawn = [
        client.run("ask", QUESTION | {"temperature": 1.0, "top_p": 0.9, "seed": seed, "max_tokens": 20})
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(client):
    with pytest.raises(ContextOverflow, match="8192") as caught:
        client.run("ask", {"question": "word " * 9000, "max_tokens": 10})
    assert caught.value.data["context"] == 8192
    assert caught.value.data["prompt_tokens"] > 9000


def test_killing_one_generation_frees_its_slot_and_leaves_its_neighbour(client, eventually):
    neighbour = client.submit("ask", {"question": "Count from one to twenty.", "max_tokens": 30})
    victim = client.submit("ask", STORY)
    next(event for event in victim.events() if isinstance(event, Token))
    steps = client.slots()[0].steps
    client.kill(victim.pid)
    eventually(lambda: used(client) <= 1, "slot free")
    assert client.slots()[0].steps - steps <= 2  # the step that ran, and one that began before the kill arrived
    with pytest.raises(Killed):
        victim.result()
    assert neighbour.result()


def test_a_client_that_disconnects_leaves_no_generation(daemon, client, eventually):
    with daemon.client() as other:
        for _ in range(3):
            other.submit("ask", STORY)
        eventually(lambda: used(client) == 3, "three stories")
    eventually(lambda: not used(client) and not client.ps(), "nothing left")


def test_a_suspended_generation_goes_on_with_the_same_text(client, eventually):
    arguments = {"question": "Write one sentence on bread.", "max_tokens": 24}
    undisturbed = client.run("ask", arguments)
    task = client.submit("ask", arguments)
    next(event for event in task.events() if isinstance(event, Token))
    client.suspend(task.pid)
    eventually(lambda: used(client) == 0, "off its slot")
    client.resume(task.pid)
    assert task.result() == undisturbed


def test_eight_generations_survive_the_death_of_their_driver(daemon, client, eventually):
    questions = ["rain", "bread", "the moon", "a violin", "the sea", "snow", "a horse", "tea"]
    tasks = [client.submit("ask", {"question": f"Tell me about {what}.", "max_tokens": 40}) for what in questions]
    eventually(
        lambda: all(s.generated_tokens > 2 for s in client.slots()[0].sequences) and used(client) == 8, "all run", 60
    )
    os.kill(client.slots()[0].driver_pid, signal.SIGKILL)
    texts = [task.result() for task in tasks]
    assert all(len(text) > 20 for text in texts)
    assert client.slots()[0].restarts == 1
    assert "driver died" in daemon.log
    assert any("driver died" in line.event for line in client.logs(tasks[0].pid))


def documents(count: int) -> list[str]:
    """Texts of some length that every machine has: docstrings of the standard library."""
    texts: list[str] = []
    for module in (argparse, asyncio, collections, datetime, decimal, email.message, logging, pathlib, shutil, socket):
        for value in (module, *vars(module).values()):
            parts = (value, *vars(value).values()) if isinstance(value, type) else (value,)
            texts += [text for part in parts if isinstance(text := getattr(part, "__doc__", None), str)]
    unique = [text for text in dict.fromkeys(texts) if len(text) > 60]
    return unique[:count]


@pytest.mark.soak
def test_map_reduce_over_documents(client, trial):
    texts = documents(trial(short=16, long=500))
    report = client.run("mapreduce", {"documents": texts, "width": 200})
    assert (len(report["answers"]), report["failures"]) == (len(texts), [])
    assert sum(report["tally"].values()) == len(texts)
    assert len(report["tally"]) > len(texts) / 20
    assert (used(client), client.stats().processes) == (0, 0)


def test_a_customer_service_desk(client):
    letters = ["I was charged twice.", "My printer shows an error.", "You will hear from my lawyer about the bill."]
    answers = client.run("desk", {"letters": letters})
    assert [answer["by"] for answer in answers] == ["billing", "technical", "senior"]
    assert all(len(answer["answer"]) > 10 for answer in answers)
