"""The engine of the transformers driver, on a tiny model with random weights and a kernel made of a list."""

from __future__ import annotations

import queue
from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the engine runs a torch model (extra `local`)")
transformers = pytest.importorskip("transformers", reason="the engine runs a transformers model (extra `local`)")

from kernel.drivers.transformers.chunks import chunks  # noqa: E402

from ipc.errors import InvalidPrompt  # noqa: E402
from ipc.syscalls import ChatMessage, Sampling  # noqa: E402
from kernel.drivers.protocol import (  # noqa: E402
    Admit,
    Admitted,
    Bundle,
    Cancel,
    Done,
    Failed,
    Parked,
    Renew,
    Revoke,
    Stop,
)
from kernel.drivers.transformers.attention import NAME, Span  # noqa: E402
from kernel.drivers.transformers.engine import Engine  # noqa: E402
from kernel.drivers.transformers.forward import PackedForward, check  # noqa: E402
from kernel.drivers.transformers.kv import KVMemory  # noqa: E402
from kernel.drivers.transformers.sequence import Limits  # noqa: E402
from kernel.drivers.transformers.tokenizer import Tokenizer  # noqa: E402

CONTEXT = 256
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
}
POISON = 96  # a token in a prompt at which the forward pass raises, or makes its logits NaN


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**SHAPE, **changes)
    config._attn_implementation = NAME
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def memory_for(model: Any, tokens: int = 10_000) -> KVMemory:
    memory = KVMemory(model.config, torch.float32, torch.device("cpu"), 0)
    memory.budget = memory.size(tokens)
    return memory


@pytest.fixture(scope="module")
def model() -> Any:
    return build("Llama")


class Letters:
    """A tokenizer whose tokens are letters."""

    def __init__(self, ends: frozenset[int] = frozenset()) -> None:
        self.ends = ends

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]:
        assert isinstance(prompt, str)
        return [ord(letter) - 31 for letter in prompt]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(identity + 31) for identity in ids)


class Kernel:
    """Both ends of the link, the clock, and the forward pass: says `during[n]` while step n runs, stops when idle."""

    def __init__(self, model: Any, tokens: int = 10_000, prefill: int = 1000, codec: Letters | None = None) -> None:
        self.inbox = self
        self.said: deque[Any] = deque()
        self.sent: list[Any] = []
        self.during: dict[int, list[Any]] = {}
        self.batches: list[list[Span]] = []
        self.raises = self.blank = False
        self.now = 0.0
        self.step_seconds = 1.0
        self.memory = memory_for(model, tokens)
        self._forward = PackedForward(model)
        limits = Limits(CONTEXT, 50)
        self.engine = Engine(self, self.forward, codec or Letters(), self.memory, limits, prefill, lambda: self.now)

    def get(self, block: bool) -> Any:
        if self.said:
            return self.said.popleft()
        if block:
            return Stop()
        raise queue.Empty

    def send(self, *messages: Any) -> None:
        self.sent += messages

    def forward(self, spans: list[Span]) -> torch.Tensor:
        self.now += self.step_seconds
        self.said.extend(self.during.pop(len(self.batches), ()))
        self.batches.append(spans)
        poisoned = [POISON in span.tokens and len(span.tokens) > 1 for span in spans]
        if self.raises and any(poisoned):
            raise RuntimeError("poison")
        logits = self._forward(spans).clone()
        if self.blank:
            logits[torch.tensor(poisoned)] = torch.nan
        return logits

    def run(self, *messages: Any) -> Kernel:
        """Run until there is nothing more to run."""
        self.said.extend(messages)
        self.engine.run()
        return self

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    @property
    def ids(self) -> dict[int, list[int]]:
        return self._gather("ids", list)

    @property
    def text(self) -> dict[int, str]:
        return self._gather("text", str)

    def _gather(self, field: str, kind: type) -> Any:
        found: Any = defaultdict(kind)
        for bundle in self.of(Bundle):
            for progress in bundle.progress:
                found[progress.sequence] += getattr(progress, field)
        return found


def admit(sequence: int, prompt: str = "", lease: int = 1000, max_tokens: int | None = 10, **sampling: Any) -> Admit:
    prompt = prompt or f"Prompt number {sequence}" * sequence
    return Admit(sequence, prompt, Sampling(max_tokens=max_tokens, **sampling), lease)


def alone(model: Any, message: Admit) -> list[int]:
    return Kernel(model).run(message).ids[message.sequence]


def test_packed_sequences_say_what_the_model_says_to_each_alone(model: Any) -> None:
    messages = [admit(sequence) for sequence in range(1, 6)]
    kernel = Kernel(model).run(*messages)
    reference = build("Llama")
    reference.set_attn_implementation("eager")
    for message in messages:
        ids = Letters().encode(message.prompt)
        out = reference.generate(
            torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=[]
        )
        assert kernel.ids[message.sequence] == out[0, len(ids) :].tolist() == alone(model, message)
    assert kernel.of(Done) == [Done(sequence, "length") for sequence in range(1, 6)]
    assert len(kernel.batches) == 10


def test_sequences_join_and_leave_between_steps_without_changing_each_other(model: Any) -> None:
    kernel = Kernel(model)
    kernel.during = {2: [admit(2, max_tokens=3)], 4: [admit(3)]}
    kernel.run(admit(1))
    for sequence, count in ((1, 10), (2, 3), (3, 10)):
        assert kernel.ids[sequence] == alone(model, admit(sequence))[:count]
    assert [done.sequence for done in kernel.of(Done)] == [2, 1, 3]


def test_a_seeded_draw_is_the_same_beside_neighbours(model: Any) -> None:
    message = admit(1, temperature=1.5, top_p=0.9, seed=5)
    kernel = Kernel(model).run(admit(2), message, admit(3, temperature=1, seed=5))
    assert kernel.ids[1] == alone(model, message)
    assert kernel.ids[1] != alone(model, admit(1))


def test_cancel_ends_a_sequence_before_the_next_step_and_frees_its_memory(model: Any) -> None:
    kernel = Kernel(model)
    kernel.during = {3: [Cancel(1)]}
    kernel.run(admit(1))
    assert kernel.sent[-1] == Done(1, "cancelled")
    assert kernel.ids[1] == alone(model, admit(1))[:4]
    assert kernel.memory.used == 0


def test_cancel_before_the_first_step_costs_no_step(model: Any) -> None:
    kernel = Kernel(model).run(admit(1), Cancel(1))
    assert kernel.sent == [Admitted(1, Letters().encode(admit(1).prompt)), Done(1, "cancelled")]
    assert kernel.batches == []


def test_messages_for_a_sequence_that_ended_are_ignored(model: Any) -> None:
    kernel = Kernel(model).run(admit(1))
    sent = list(kernel.sent)
    assert kernel.run(Cancel(1), Renew(1, 5), Revoke(1)).sent == sent


def test_a_sequence_parks_at_its_lease_and_renewal_goes_on(model: Any) -> None:
    kernel = Kernel(model).run(admit(1, lease=4))
    assert kernel.sent[-1] == Parked(1)
    assert len(kernel.ids[1]) == 4
    kernel.run(Renew(1, 3))
    assert len(kernel.ids[1]) == 7
    kernel.run(Renew(1, 30))
    assert kernel.ids[1] == alone(model, admit(1))
    assert kernel.of(Parked) == [Parked(1), Parked(1)]
    assert len(kernel.batches) == 10  # nothing was computed twice


def test_an_early_renewal_leaves_no_gap(model: Any) -> None:
    kernel = Kernel(model)
    kernel.during = {1: [Renew(1, 20)]}
    assert len(kernel.run(admit(1, lease=3)).ids[1]) == 10
    assert kernel.of(Parked) == []


def test_a_revoked_sequence_parks_once_and_goes_on_when_renewed(model: Any) -> None:
    kernel = Kernel(model)
    kernel.during = {2: [Revoke(1), Revoke(1)]}
    kernel.run(admit(1))
    assert len(kernel.ids[1]) == 3
    assert kernel.of(Parked) == [Parked(1)]
    assert kernel.run(Renew(1, 100)).ids[1] == alone(model, admit(1))


@pytest.mark.parametrize("count", range(10))
def test_a_new_incarnation_goes_on_where_the_old_one_died(model: Any, count: int) -> None:
    sampling = Sampling(max_tokens=10, temperature=1, seed=3)
    whole = Kernel(model).run(Admit(1, "Some prompt", sampling, 100))
    before = Kernel(model).run(Admit(1, "Some prompt", sampling, count))
    recovered = Kernel(model).run(
        Admit(1, "", sampling, 100, Letters().encode("Some prompt"), before.ids[1], len(before.text[1]))
    )
    assert before.text[1] + recovered.text[1] == whole.text[1]
    assert before.ids[1] + recovered.ids[1] == whole.ids[1]
    assert recovered.of(Admitted) == []
    assert recovered.of(Done) == [Done(1, "length")]


def test_a_sequence_that_had_ended_when_its_driver_died_ends_at_once(model: Any) -> None:
    ids = alone(model, admit(1))
    kernel = Kernel(model).run(Admit(1, "", Sampling(max_tokens=10), 5, Letters().encode(admit(1).prompt), ids, 8))
    assert kernel.text[1] == Letters().decode(ids)[8:]
    assert kernel.sent[-1] == Done(1, "length")
    assert kernel.batches == []


@pytest.mark.parametrize("prefill", [2, 7, 16])
def test_a_prompt_in_chunks_gives_what_the_whole_prompt_gives(model: Any, prefill: int) -> None:
    kernel = Kernel(model, prefill=prefill).run(admit(1), admit(4), admit(2))
    for sequence in (1, 2, 4):
        assert kernel.ids[sequence] == alone(model, admit(sequence))
    assert max(sum(len(span.tokens) for span in spans if len(span.tokens) > 1) for spans in kernel.batches) <= prefill


def test_a_long_prompt_holds_up_neither_tokens_nor_a_short_prompt(model: Any) -> None:
    kernel = Kernel(model, prefill=16)
    kernel.during = {1: [admit(2, "long" * 40)], 2: [admit(3, "short")]}
    kernel.run(admit(1, "first"))
    steps = [[progress.sequence for progress in bundle.progress] for bundle in kernel.of(Bundle)]
    assert [index for index, sequences in enumerate(steps) if 1 in sequences] == list(range(10))
    assert next(index for index, sequences in enumerate(steps) if 3 in sequences) == 3
    assert next(index for index, sequences in enumerate(steps) if 2 in sequences) == 12


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(2, 200))
def test_chunks_run_every_decode_and_share_the_room_for_prefill(pending: list[int], room: int) -> None:
    counts = chunks(pending, room)
    prefill = sum(count for count, wanted in zip(counts, pending, strict=True) if wanted > 1)
    assert all(count == 1 for count, wanted in zip(counts, pending, strict=True) if wanted == 1)
    assert all(count <= wanted for count, wanted in zip(counts, pending, strict=True))
    assert prefill == min(room, sum(wanted for wanted in pending if wanted > 1))
    oldest = next((index for index, wanted in enumerate(pending) if wanted > 1), None)
    assert oldest is None or counts[oldest] >= min(pending[oldest], room // 2)


def test_a_sequence_that_breaks_the_step_fails_alone(model: Any) -> None:
    kernel = Kernel(model)
    kernel.raises = True
    kernel.during = {2: [admit(2, "bad\x7f")]}
    kernel.run(admit(1), admit(3))
    (failed,) = kernel.of(Failed)
    assert (failed.sequence, failed.error.code) == (2, "DriverFailed")
    assert "poison" in failed.error.message
    for sequence in (1, 3):
        assert kernel.ids[sequence] == alone(model, admit(sequence))
    assert kernel.memory.used == 0


def test_logits_that_are_no_numbers_fail_their_sequence_alone(model: Any) -> None:
    kernel = Kernel(model)
    kernel.blank = True
    kernel.run(admit(1), admit(2, "bad\x7f"))
    (failed,) = kernel.of(Failed)
    assert (failed.sequence, failed.error.code) == (2, "DriverFailed")
    assert kernel.ids[1] == alone(model, admit(1))


def test_an_error_while_decoding_fails_its_sequence_alone(model: Any) -> None:
    class Picky(Letters):
        def decode(self, ids: list[int]) -> str:
            if "bad" in super().decode(ids) and len(ids) > 5:
                raise ValueError("cannot decode")
            return super().decode(ids)

    kernel = Kernel(model, codec=Picky()).run(admit(1), admit(2, "bad"))
    assert [failed.sequence for failed in kernel.of(Failed)] == [2]
    assert kernel.ids[1] == alone(model, admit(1))
    assert len(kernel.ids[2]) == 2


def test_sequences_wait_for_memory_in_their_order(model: Any) -> None:
    kernel = Kernel(model, tokens=60)
    messages = [admit(sequence, "x" * 20, max_tokens=size) for sequence, size in ((1, 5), (2, 20), (3, 20), (4, 2))]
    kernel.run(*messages)
    assert [done.sequence for done in kernel.of(Done)] == [1, 2, 3, 4]
    assert all(sum(span.slab.capacity for span in spans) <= 60 for spans in kernel.batches)
    assert kernel.memory.used == 0


def test_a_sequence_that_waits_for_memory_can_be_parked_and_cancelled(model: Any) -> None:
    kernel = Kernel(model, tokens=40)
    kernel.during = {1: [Revoke(2), Cancel(3)]}
    kernel.run(*[admit(sequence, "x" * 20) for sequence in (1, 2, 3)])
    assert kernel.of(Parked) == [Parked(2)]
    assert Done(3, "cancelled") in kernel.sent
    assert len(kernel.ids[1]) == 10
    assert len(kernel.run(Renew(2, 100)).ids[2]) == 10


def test_what_never_fits_in_memory_is_refused_with_both_numbers(model: Any) -> None:
    kernel = Kernel(model, tokens=25).run(admit(1, "x" * 20))
    (failed,) = kernel.of(Failed)
    assert failed.error.code == "LimitExceeded"
    assert failed.error.data == {"bytes": kernel.memory.size(30), "kv_memory": kernel.memory.size(25)}
    assert all(str(number) in failed.error.message for number in failed.error.data.values())


def test_prompt_and_reply_may_fill_the_context_and_not_exceed_it(model: Any) -> None:
    kernel = Kernel(model).run(admit(1, "x" * 250, max_tokens=6), admit(2, "x" * 250, max_tokens=7))
    assert len(kernel.ids[1]) == 6
    (failed,) = kernel.of(Failed)
    assert failed.error.code == "ContextOverflow"
    assert failed.error.data == {"prompt_tokens": 250, "max_tokens": 7, "context": CONTEXT}
    assert "250" in failed.error.message
    assert "256" in failed.error.message


def test_without_max_tokens_a_reply_is_bounded_by_the_default_and_the_context(model: Any) -> None:
    prompts = {1: "x", 2: "x" * 250, 3: "x" * 256}
    kernel = Kernel(model).run(*[admit(sequence, text, max_tokens=None) for sequence, text in prompts.items()])
    assert [len(kernel.ids[sequence]) for sequence in prompts] == [50, 6, 0]
    assert [failed.error.code for failed in kernel.of(Failed)] == ["ContextOverflow"]


def test_an_end_of_text_token_ends_the_text_before_it(model: Any) -> None:
    ids = alone(model, admit(1))
    end = ids[5]
    kernel = Kernel(model, codec=Letters(frozenset({end}))).run(admit(1))
    count = ids.index(end) + 1
    assert kernel.ids[1] == ids[:count]
    assert kernel.text[1] == Letters().decode(ids[: count - 1])
    assert kernel.of(Done) == [Done(1, "stop")]


def test_a_stop_string_across_tokens_ends_the_text_before_it(model: Any) -> None:
    text = Letters().decode(alone(model, admit(1)))
    stop = text[4:7]
    kernel = Kernel(model).run(admit(1, stop=(stop,)))
    assert kernel.text[1] == text[: text.index(stop)]
    assert kernel.of(Done) == [Done(1, "stop")]


def test_short_steps_share_a_bundle_and_an_end_sends_it_at_once(model: Any) -> None:
    kernel = Kernel(model)
    kernel.step_seconds = 0.02
    kernel.run(admit(1))
    assert [bundle.steps for bundle in kernel.of(Bundle)] == [3, 3, 3, 1]
    assert sum(bundle.seconds for bundle in kernel.of(Bundle)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_check_accepts_models_whose_attention_it_knows(name: str) -> None:
    model = build(name)
    memory = memory_for(model)
    check(model, memory)
    assert memory.used == 0
    assert model.config._attn_implementation == NAME


def test_a_sliding_window_is_honoured() -> None:
    model, reference = build("Mistral", sliding_window=8), build("Mistral", sliding_window=8)
    reference.set_attn_implementation("eager")
    ids = Letters().encode("a prompt that is longer than the window")
    kernel = Kernel(model, prefill=9).run(admit(2), Admit(1, "", Sampling(max_tokens=10), 99, ids))
    out = reference.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=[])
    assert kernel.ids[1] == out[0, len(ids) :].tolist()
    assert kernel.ids[1] != alone(build("Mistral", sliding_window=None), Admit(1, "", Sampling(max_tokens=10), 99, ids))


def test_check_refuses_attention_that_it_does_not_know() -> None:
    model = build("Gemma2", query_pre_attn_scalar=16)
    with pytest.raises(NotImplementedError, match="softcap"):
        check(model, memory_for(model))


class Template:
    """A tokenizer of transformers, as far as `Tokenizer` looks at it."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(text)}

    def apply_chat_template(self, turns: Any, **options: Any) -> list[int]:
        raise ValueError("roles must alternate")


@pytest.mark.parametrize(
    ("template", "prompt", "words"),
    [
        (None, "", "empty"),
        (None, [], "empty"),
        (None, [ChatMessage("user", "hi")], "model tiny has no chat template"),
        ("x", [ChatMessage("user", "hi")], "roles must alternate"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_refused(template: str | None, prompt: Any, words: str) -> None:
    with pytest.raises(InvalidPrompt, match=words):
        Tokenizer(Template(template), frozenset(), "tiny").encode(prompt)
