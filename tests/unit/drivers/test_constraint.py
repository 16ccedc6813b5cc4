"""Constrained replies fit by construction, at any temperature, and a bad constraint fails only its own call.

The tokenizer is the embedded model's own; the model behind it is tiny and generates random text.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model
torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
pytest.importorskip("llguidance", reason="constraints are compiled by llguidance (extra `local`)")

from ipc.errors import InvalidConstraint  # noqa: E402
from ipc.syscalls import Constraint, Sampling  # noqa: E402
from kernel.drivers.protocol import Admit, Bundle, Cancel, Done, Parked, Renew, Restored, Revoke, SequenceFailed  # noqa: E402
from kernel.drivers.transformers import constraint  # noqa: E402
from kernel.drivers.transformers.tokenizer import Tokenizer  # noqa: E402
from tests.support.tiny import Kernel, Ready, ready  # noqa: E402

VOCABULARY = 49152
END = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CHOICES = [
    *("yes", "no", "no way", 'say "no"', "back\\slash", "two\nlines", "tab\t", "/x/", "{}"),
    *("naïve", "日本語", "😀 or not", "👩\u200d👧"),
]
DATE = "[A-Z][a-z]{2,9}, [0-9]{4}-[0-9]{2}"
LETTERS = 'start: word (" " word)* "."\nword: /[a-c]{1,3}/'
NEIGHBOUR = Admit(99, "A neighbour that wants nothing special.", Sampling(max_tokens=30, temperature=1, seed=9), 100)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from kernel.drivers.transformers.conversion import converted
    from kernel.drivers.transformers.source import locate

    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmosd" / "models"
    cache = Path(os.environ.get("LLMOSD_TEST_CACHE") or default)
    return AutoTokenizer.from_pretrained(converted(Path(locate("embedded")), cache, lambda stage: None))


@pytest.fixture(scope="module")
def codec(tokenizer: Any) -> Tokenizer:
    return Tokenizer(tokenizer, frozenset({END}), "embedded", VOCABULARY)


@pytest.fixture(scope="module")
def model() -> Ready:
    return ready("Llama", vocab_size=VOCABULARY, initializer_range=0.2)


@pytest.fixture(scope="module")
def alone(model: Ready, codec: Tokenizer) -> list[int]:
    return Kernel(model, codec).run(NEIGHBOUR).ids[99]


def held(sequence: int, kind: Any, value: Any, **sampling: Any) -> Admit:
    text = value if isinstance(value, str) else json.dumps(value)
    sampling = {"max_tokens": 60, "temperature": 1.5, "seed": sequence} | sampling
    return Admit(sequence, "Say something.", Sampling(constraint=Constraint(kind, text), **sampling), 1000)


def is_person(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == ["name", "age", "tags"]
    assert len(value["name"]) <= 8
    assert 0 <= value["age"] <= 150
    return len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}


FITTING: list[tuple[str, Any, Callable[[str], Any]]] = [
    ("schema", PERSON, is_person),
    ("schema", {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}, json.loads),
    ("regex", DATE, re.compile(DATE).fullmatch),
    ("regex", "(yes|no)( (yes|no)){2}", re.compile("(yes|no)( (yes|no)){2}").fullmatch),
    ("choices", CHOICES, CHOICES.__contains__),
    ("grammar", LETTERS, re.compile(r"[a-c]{1,3}( [a-c]{1,3})*\.").fullmatch),
]


@pytest.mark.parametrize(("kind", "value", "fits"), FITTING)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_reply_fits_its_constraint_or_is_cut(
    model: Ready, codec: Tokenizer, kind: str, value: Any, fits: Callable[[str], Any], temperature: float
) -> None:
    calls = [held(number, kind, value, temperature=temperature) for number in range(1, 4)]
    kernel = Kernel(model, codec).run(*calls)
    assert kernel.of(SequenceFailed) == []
    reasons = {done.sequence: done.reason for done in kernel.of(Done)}
    assert set(reasons) == set(range(1, 4))
    for number, reason in reasons.items():
        if reason == "stop":
            assert fits(kernel.text[number]), kernel.text[number]
        else:
            assert (reason, len(kernel.ids[number])) == ("length", 60)
    assert "stop" in reasons.values() or kind == "grammar"


def test_every_choice_can_be_said(model: Ready, codec: Tokenizer) -> None:
    kernel = Kernel(model, codec).run(*[held(number, "choices", [choice]) for number, choice in enumerate(CHOICES, 1)])
    assert [kernel.text[number] for number in range(1, len(CHOICES) + 1)] == CHOICES
    assert {done.reason for done in kernel.of(Done)} == {"stop"}


@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_a_reply_that_is_cut_is_the_beginning_of_one_that_fits(model: Ready, codec: Tokenizer, most: int) -> None:
    kernel = Kernel(model, codec).run(
        *[held(number, "regex", "(ab|cd){40}", max_tokens=most) for number in range(1, 6)]
    )
    assert [done.reason for done in kernel.of(Done)] == ["length"] * 5
    assert all(re.fullmatch("(ab|cd)*[ac]?", kernel.text[number]) for number in range(1, 6))


def test_logprobs_are_those_of_the_model_without_its_constraint(model: Ready, codec: Tokenizer) -> None:
    free = Kernel(model, codec).run(Admit(1, "Say something.", Sampling(max_tokens=1, top_k=1, logprobs=True), 9))
    bound = Kernel(model, codec).run(held(1, "choices", ["yes"], temperature=0, logprobs=True))
    assert bound.logprobs[1][0] < free.logprobs[1][0]


# ---- constraints that cannot be met


IMPOSSIBLE = [
    ("schema", "{"),
    ("schema", "[]"),
    ("schema", '{"type": "strange"}'),
    ("schema", '{"type": "string", "minLength": 5, "maxLength": 2}'),
    ("schema", '{"$ref": "#/nowhere"}'),
    ("regex", "("),
    ("regex", r"a\bb"),
    ("regex", r"[^\x00-\U0010FFFF]"),
    ("choices", '["a"'),
    ("choices", "[]"),
    ("choices", "5"),
    ("choices", '{"a": 1}'),
    ("choices", '["a", 2]'),
    ("grammar", ""),
    ("grammar", "start: nothing"),
    ("grammar", "start: start"),
    ("grammar", "start: /(/"),
]
CATASTROPHIC = [
    ("regex", r"(\w*\d*)*\w{500}"),
    ("regex", "((a{0,200}){0,200}){0,200}"),
    ("grammar", "start: " + '("a" | "b")? ' * 3000),
    ("grammar", 'start: r0\nr40: "y"\n' + "".join(f'r{n}: r{n + 1} r{n + 1} | "x"\n' for n in range(40))),
    ("grammar", "start: A\nA: /(.|\\n)*/ & ~/(.|\\n)*a.{25}b.{10}(.|\\n)*/ & /.*c.{12}d.*/"),
    ("schema", "[" * 5000),
]


@pytest.mark.parametrize(("kind", "value"), IMPOSSIBLE)
def test_an_impossible_constraint_is_refused_before_a_token_is_made(
    model: Ready, codec: Tokenizer, alone: list[int], kind: str, value: str
) -> None:
    kernel = Kernel(model, codec).run(NEIGHBOUR, held(1, kind, value))
    (failed,) = kernel.of(SequenceFailed)
    assert (failed.sequence, failed.error.code) == (1, "InvalidConstraint")
    assert kind in failed.error.message
    assert kernel.ids == {99: alone}
    assert kernel.memory.used == 0


@pytest.mark.parametrize(("kind", "value"), CATASTROPHIC)
def test_a_catastrophic_constraint_ends_its_own_call_alone(
    model: Ready, codec: Tokenizer, alone: list[int], kind: str, value: str
) -> None:
    kernel = Kernel(model, codec).run(NEIGHBOUR, held(1, kind, value, max_tokens=30))
    assert kernel.ids[99] == alone
    assert {failed.error.code for failed in kernel.of(SequenceFailed)} <= {"InvalidConstraint"}
    assert len(kernel.of(SequenceFailed)) + len(kernel.of(Done)) == 2
    assert Kernel(model, codec).run(held(2, "choices", ["fine"])).text == {2: "fine"}


# ---- while it is compiled


class Held:
    """Holds up the compilation of "slow" constraints until `gate` is set. `begun` lists all that began."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()
        real = constraint._grammar

        def wait(held: Constraint) -> str:
            self.begun.append(held.value)
            if "slow" in held.value:
                self.gate.wait(60)
            return real(held)

        patch.setattr(constraint, "_grammar", wait)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held(monkeypatch)
    yield found
    found.gate.set()


def test_neighbours_step_while_a_constraint_is_compiled(
    model: Ready, codec: Tokenizer, alone: list[int], slow: Held
) -> None:
    kernel = Kernel(model, codec)
    kernel.before = lambda spans: slow.gate.set() if len(kernel.batches) == 20 else None
    kernel.run(NEIGHBOUR, held(1, "choices", ["slow"]))
    first = next(
        place for place, bundle in enumerate(kernel.of(Bundle)) if any(p.sequence == 1 for p in bundle.progress)
    )
    assert first >= 20 or len(kernel.batches) >= 20
    assert kernel.ids[99] == alone
    assert kernel.text[1] == "slow"


def test_a_constraint_that_takes_too_long_is_refused_and_the_next_is_compiled(
    model: Ready, codec: Tokenizer, slow: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constraint, "COMPILE_TIMEOUT", 0.01)
        kernel = Kernel(model, codec).run(held(1, "choices", ["slow"]))
    (failed,) = kernel.of(SequenceFailed)
    assert (failed.sequence, failed.error.code) == (1, "InvalidConstraint")
    assert "not compiled within 0.01 s" in failed.error.message
    assert kernel.run(held(2, "choices", ["quick"])).text == {2: "quick"}  # the first still keeps a thread busy
    assert not slow.gate.is_set()
    slow.gate.set()
    assert kernel.run(*[held(number, "choices", [f"slow {number}"]) for number in (3, 4, 5)]).text[5] == "slow 5"
    assert [failed.sequence for failed in kernel.of(SequenceFailed)] == [1]


def test_nothing_is_left_that_watches_over_constraints_that_are_compiled(model: Ready, codec: Tokenizer) -> None:
    kernel = Kernel(model, codec).run(*[held(number, "choices", [f"call {number}"]) for number in range(1, 11)])
    assert len(kernel.of(Done)) == 10
    watches = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for watch in watches:
        watch.join(constraint.COMPILE_TIMEOUT / 2)
    assert not any(watch.is_alive() for watch in watches)


def test_a_call_can_be_cancelled_and_revoked_while_its_constraint_is_compiled(
    model: Ready, codec: Tokenizer, slow: Held
) -> None:
    calls = [held(1, "choices", ["slow one"]), held(2, "choices", ["slow two"])]
    kernel = Kernel(model, codec).run(*calls, Cancel(1), Revoke(2), slow.gate.set)
    assert kernel.of(Done) == [Done(1, "cancelled")]
    assert kernel.of(Parked) == [Parked(2, held=False)]
    assert kernel.run(Renew(2, 100)).text == {2: "slow two"}
    assert kernel.memory.used == 0


def test_a_call_without_a_lease_is_parked_once_its_constraint_is_compiled(model: Ready, codec: Tokenizer) -> None:
    message = held(1, "choices", ["fine"])
    message.lease = 0
    kernel = Kernel(model, codec).run(message)
    assert kernel.of(Parked) == [Parked(1, held=False)]
    assert kernel.run(Renew(1, 100)).text == {1: "fine"}


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_new_incarnation_goes_on_within_the_constraint(model: Ready, codec: Tokenizer, count: int) -> None:
    message = held(1, "schema", PERSON, temperature=1, max_tokens=40)
    whole = Kernel(model, codec).run(message)
    before = Kernel(model, codec).run(Admit(1, message.prompt, message.sampling, count))
    again = Admit(1, "", message.sampling, 100, codec.encode(message.prompt), before.ids[1], len(before.text[1]))
    after = Kernel(model, codec).run(again)
    assert [restored.recomputed for restored in after.of(Restored)] == [True]
    assert before.ids[1] + after.ids[1] == whole.ids[1]
    assert before.text[1] + after.text[1] == whole.text[1]


def test_what_is_refused_is_named_without_an_engine(codec: Tokenizer) -> None:
    with pytest.raises(InvalidConstraint, match="regex"):
        codec.grammars.compile(Constraint("regex", "(")).result(60)
