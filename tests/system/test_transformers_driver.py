"""The real transformers driver in a process of its own, with the embedded model."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.codec import decoder, encode
from ipc.frames import FrameDecoder, frame
from ipc.syscalls import ChatMessage, Sampling
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Bundle,
    Cancel,
    Done,
    FromDriver,
    Load,
    Loaded,
    LoadFailed,
    SequenceFailed,
    Stop,
)

pytestmark = pytest.mark.model
pytest.importorskip("transformers", reason="the driver runs on transformers (extra `local`)")

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmosd" / "models"
CACHE = Path(os.environ.get("LLMOSD_TEST_CACHE") or DEFAULT_CACHE)
TILE = 16  # positions in one tile of attention
PROMPTS = [
    "What is the capital of France?", "Who wrote Hamlet?", "What is 2 + 2?", "List three fruits.", "Describe the sea.",
    "Explain how rain forms.", "Tell me a story about a dragon.", "Write a Python function that adds two numbers.",
    "Translate 'good morning' to French.", "Name a planet with rings.", "What color is the sky?", "Say hello.",
    "Give me a recipe for pancakes.", "Why do cats purr?", "What is photosynthesis?", "Count from one to ten.",
    "Write a haiku about autumn.", "What does HTTP stand for?", "Is water wet?", "Summarize: the dog ate my homework.",
]  # fmt: skip


class Driver:
    """A driver process, and the kernel's end of its socket."""

    def __init__(self, **environment: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(120)
        command = [sys.executable, "-P", "-m", "kernel.drivers.transformers", str(theirs.fileno()), str(os.getpid())]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            | environment,
        )
        theirs.close()
        self.messages = self._read()

    def say(self, *messages: Any) -> None:
        self.socket.sendall(b"".join(frame(encode(message)) for message in messages))

    def until(self, *kinds: type) -> list[Any]:
        """All messages up to the first of `kinds`."""
        found = []
        for message in self.messages:
            found.append(message)
            if isinstance(message, kinds):
                return found
        raise AssertionError(f"the driver closed its socket after {found}")

    def load(self, model: str = "embedded", **options: Any) -> Any:
        self.say(Load(model, str(CACHE), 256, options))
        return self.until(Loaded, LoadFailed)[-1]

    def _read(self) -> Iterator[Any]:
        frames, kind = FrameDecoder(), decoder(FromDriver)
        while data := self.socket.recv(1 << 20):
            for payload in frames.feed(data):
                yield kind.decode(payload)

    def end(self) -> None:
        self.socket.close()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    driver = Driver()
    assert isinstance(driver.load(), Loaded)
    yield driver
    driver.end()


@pytest.fixture(scope="module")
def precise() -> Iterator[Driver]:
    """A driver with weights of the type that the reference model has."""
    driver = Driver()
    assert isinstance(driver.load(dtype="float32"), Loaded)
    yield driver
    driver.end()


@pytest.fixture
def fresh() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.process.kill()
    driver.end()


@pytest.fixture(scope="module")
def reference() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from kernel.drivers.transformers.conversion import converted
    from kernel.drivers.transformers.source import locate

    folder = converted(Path(locate("embedded")), CACHE, lambda stage: None)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ask(sequence: int, question: str, max_tokens: int = 32) -> Admit:
    return Admit(sequence, [ChatMessage("user", question)], Sampling(max_tokens=max_tokens, temperature=0), 1000)


GREEDY = {"List three fruits.": 8, "Write a Python function that adds two numbers.": 12, "What is 2 + 2?": 5}  # tokens


@pytest.mark.soak
@pytest.mark.timeout(3600)  # the long form makes 640 tokens twice, one at a time
def test_a_lone_greedy_sequence_equals_generate_token_for_token(
    precise: Driver, reference: Any, trial: Callable[..., int]
) -> None:
    """The short form has few replies, and runs the model of transformers once over each of them.

    If its likeliest token at each position is the next token of the reply, the reply is the one of its own `generate`.
    """
    import torch

    whole = bool(trial(short=0, long=1))
    lengths = dict.fromkeys(PROMPTS, 32) if whole else GREEDY
    crossed = 0
    for sequence, (question, count) in enumerate(lengths.items(), start=1):
        precise.say(ask(sequence, question, count))
        messages = precise.until(Done, SequenceFailed)
        (admitted,) = [message for message in messages if isinstance(message, Admitted)]
        bundles = [message for message in messages if isinstance(message, Bundle)]
        ids = [identity for bundle in bundles for progress in bundle.progress for identity in progress.ids]
        prompt = admitted.prompt_ids
        crossed += len(prompt) // TILE < (len(prompt) + len(ids) - 1) // TILE
        if whole:
            tokens = torch.tensor([prompt])
            found = reference.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False
            )
            expected = found[0, len(prompt) :].tolist()
        else:
            with torch.inference_mode():
                logits = reference(torch.tensor([[*prompt, *ids[:-1]]])).logits[0, len(prompt) - 1 :]
            expected = logits.argmax(-1).tolist()
        assert ids == expected, question
    assert crossed, "no reply goes on into another tile"


def test_many_sequences_at_once_answer_each_its_own_question(driver: Driver) -> None:
    driver.say(*[ask(100 + index, question, 12) for index, question in enumerate(PROMPTS)], Cancel(119))
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, str] = {}
    while len(ends) < len(PROMPTS):
        message = driver.until(Bundle, Done, SequenceFailed)[-1]
        if isinstance(message, Bundle):
            for progress in message.progress:
                texts[progress.sequence] += progress.text
        else:
            assert isinstance(message, Done)
            ends[message.sequence] = message.reason
    assert "Paris" in texts[100]
    assert ends[119] == "cancelled"
    assert all(texts[sequence] for sequence in ends if sequence != 119)


def test_the_facts_say_what_runs(fresh: Driver) -> None:
    loaded = fresh.load(threads=1, kv_memory=10_000_000)
    assert loaded.context == 8192
    assert loaded.facts == {
        "weights": loaded.facts["weights"],  # the faster type of this machine
        "device": "cpu",
        "network": "decoder",
        "attention": loaded.facts["attention"],
        "deterministic": True,
        "parameters": 134515008,
        "vocabulary": 49152,
        "threads": 1,
        "kv_bytes_per_token": 46080,
        "kv_budget": 10_000_000,
    }


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("/nowhere/model", {}, "ModelNotFound", "/nowhere/model"),
        ("./missing.gguf", {}, "ModelNotFound", "missing.gguf"),
        ("nobody/no-such-model", {}, "ModelNotFound", "nobody/no-such-model"),
        ("embedded", {"quantize": True}, "ConfigError", "kv_memory"),
        ("embedded", {"dtype": "int3"}, "ConfigError", "bfloat16"),
        ("embedded", {"device": "cuda:99"}, "ModelLoadFailed", "embedded"),
    ],
)
def test_a_load_that_cannot_succeed_is_named_and_ends_the_driver(
    fresh: Driver, model: str, options: dict[str, Any], code: str, words: str
) -> None:
    failed = fresh.load(model, **options)
    assert isinstance(failed, LoadFailed)
    assert failed.error.code == code
    assert words in failed.error.message
    assert fresh.process.wait(60) == 0


def test_a_broken_gguf_is_named(fresh: Driver, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing of the kind")
    fresh.say(Load(str(broken), str(tmp_path / "cache"), 256))
    failed = fresh.until(LoadFailed)[-1]
    assert failed.error.code == "ModelLoadFailed"
    assert str(broken) in failed.error.message


def test_nothing_is_printed_and_stop_ends_the_driver(fresh: Driver) -> None:
    assert isinstance(fresh.load(), Loaded)
    fresh.process.send_signal(signal.SIGINT)
    fresh.say(ask(1, "Say hello."), Stop())
    out, err = fresh.process.communicate(timeout=60)
    assert (fresh.process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize("loaded", [False, True])
def test_the_driver_ends_when_the_kernel_closes_the_socket(fresh: Driver, loaded: bool) -> None:
    if loaded:
        assert isinstance(fresh.load(), Loaded)
        fresh.say(ask(1, "Tell me a story.", max_tokens=4000))
        fresh.until(Bundle)
    fresh.socket.close()
    assert fresh.process.wait(60) == 0


def test_the_driver_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(CACHE)],
        stdout=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    watch = os.pidfd_open(child)
    parent.kill()
    parent.wait()
    # The kernel's end of the socket is still open in a grandchild, so only its parent's death can end the driver.
    assert select.select([watch], [], [], 30)[0]
    os.close(watch)
    parent.stdout.close()


PARENT = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
keeper = subprocess.Popen(["sleep", "60"], pass_fds=[ours.fileno()], stdout=subprocess.DEVNULL)
driver = subprocess.Popen(
    [sys.executable, "-P", "-m", "kernel.drivers.transformers", str(theirs.fileno()), str(os.getpid())],
    pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL,
)
theirs.close()
from ipc.codec import encode
from ipc.frames import frame
from kernel.drivers.protocol import Load
ours.sendall(frame(encode(Load("embedded", sys.argv[1], 256))))
assert ours.recv(1)
print(driver.pid, flush=True)
driver.wait()
"""
