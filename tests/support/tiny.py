"""Tiny models with random weights, and a scripted kernel, for tests of the transformers driver.

A `Kernel` is both ends of the link, the clock and the forward pass: no test that uses it sleeps, waits for a socket, or
depends on how fast the machine is.
"""

from __future__ import annotations

import queue
from collections import defaultdict, deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
transformers = pytest.importorskip("transformers", reason="the driver runs transformers models (extra `local`)")

from ipc.syscalls import ChatMessage, Sampling  # noqa: E402
from kernel.drivers.protocol import Admit, Bundle, Stop  # noqa: E402
from kernel.drivers.transformers import batch_invariance, linear  # noqa: E402
from kernel.drivers.transformers.attention import SafeLengths, Span  # noqa: E402
from kernel.drivers.transformers.batch_invariance import RowCounts  # noqa: E402
from kernel.drivers.transformers.call_lifecycle import CallLifecycle  # noqa: E402
from kernel.drivers.transformers.decoder import Decoder  # noqa: E402
from kernel.drivers.transformers.engine import Engine  # noqa: E402
from kernel.drivers.transformers.forward import ForwardOutput, PackedForward  # noqa: E402
from kernel.drivers.transformers.hf_backend import NAME, HFBackend  # noqa: E402
from kernel.drivers.transformers.kv import Geometry, KVMemory  # noqa: E402
from kernel.drivers.transformers.kv_allocator import KVAllocator  # noqa: E402
from kernel.drivers.transformers.model_manifest import manifest_of  # noqa: E402
from kernel.drivers.transformers.prefill_budget import PrefillBudget  # noqa: E402
from kernel.drivers.transformers.prefix import PrefixCache  # noqa: E402
from kernel.drivers.transformers.report import BundleReport  # noqa: E402
from kernel.drivers.transformers.sequence import EngineLimits  # noqa: E402
from kernel.drivers.transformers.tokenize_ahead import tokenized  # noqa: E402

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
SLABS = 24
PATIENCE = 60.0  # seconds for a worker thread to finish, after which a test has failed


def build(name: str, **changes: Any) -> Any:
    """A transformers model with our attention, and the same weights each time."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**SHAPE | changes)
    config._attn_implementation = NAME
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def geometry_of(model: Any) -> Geometry:
    config = model.config
    return Geometry(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, torch.float32)


class Ready:
    """A model as `model_builder` makes it: its network, and the row counts and lengths that make its numbers exact."""

    def __init__(self, model: Any, kernel: str = "float32") -> None:
        config = model.config
        self.geometry = geometry_of(model)
        self.context: int = config.max_position_embeddings
        manifest = manifest_of(model)
        pack = linear.CPU_KERNELS[kernel]
        self.counts = RowCounts(batch_invariance.safe_row_counts(set(manifest.shapes), pack))
        queries = config.num_attention_heads // config.num_key_value_heads
        self.lengths = SafeLengths(_lengths(self.geometry, queries))
        if manifest.decoder:
            self.network: Any = Decoder(manifest, model.state_dict(), pack)
        else:
            linear.replace(model, pack)
            self.network = HFBackend(model)

    def memory(self, tokens: int = 10_000, slabs: int = SLABS) -> KVMemory:
        """KV memory with a budget of `tokens` tokens."""
        capacity = self.lengths.padded(self.context)
        memory = KVMemory(self.geometry, capacity, slabs, torch.device("cpu"), 0)
        memory.budget = memory.size(tokens)
        return memory

    def forward(self, memory: KVMemory) -> PackedForward:
        return PackedForward(self.network, memory, self.counts, self.lengths)


@cache
def _lengths(geometry: Geometry, queries: int) -> tuple[int, ...]:
    return batch_invariance.safe_lengths(geometry, queries)


@cache
def ready(name: str, kernel: str = "float32", **changes: Any) -> Ready:
    """The model of that name, built once."""
    return Ready(build(name, **changes), kernel)


class Letters:
    """A tokenizer whose tokens are letters."""

    def __init__(self, ends: frozenset[int] = frozenset()) -> None:
        self.ends = ends
        self.skipped: dict[int, str] = {}
        self.sampled: int | None = None
        self.grammars: Any = None

    def encode(self, prompt: list[ChatMessage] | str) -> list[int]:
        assert isinstance(prompt, str)
        return [ord(letter) - 31 for letter in prompt]

    def encode_document(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_more(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(identity + 31) for identity in ids)


class Kernel:
    """Sends `during[n]` while step n runs, and stops the driver when nothing can run any more.

    `sent`: the messages of the driver. `batches`: the spans of each step. `before` may change a step or raise in its
    place; `after` may change its output. `seconds`: how long a step takes. `disk`: a folder for prefixes.
    """

    def __init__(
        self,
        model: Ready,
        codec: Any = None,
        *,
        tokens: int = 10_000,
        slabs: int = SLABS,
        most: int = 256,
        max_rows: int | None = None,
        quota: int | None = None,
        fingerprint: str = "tiny",
        max_tokens: int = 50,
        disk: Path | None = None,
    ) -> None:
        self.inbox = self
        self.codec = codec or Letters()
        self.said: deque[Any] = deque()
        self.during: dict[int, list[Any]] = {}
        self.batches: list[list[Span]] = []
        self.sent: list[Any] = []
        self.now = 0.0
        self.seconds: Callable[[list[Span]], float] = lambda spans: 0.0
        self.before: Callable[[list[Span]], None] = lambda spans: None
        self.after: Callable[[list[Span], ForwardOutput], ForwardOutput] = lambda spans, output: output
        self.memory = model.memory(tokens, slabs)
        cache = PrefixCache(self.memory, str(disk or ""), 2 * self.memory.budget, lambda: self.now)
        cache.rates.token = 1.0  # expensive: every prefix that may go to disk goes there
        self.allocator = KVAllocator(self.memory, None if quota is None else self.memory.size(quota), cache)
        report = BundleReport(self, lambda: self.now)
        limits = EngineLimits(model.context, max_tokens)
        self._forward = model.forward(self.memory)
        self._thread_said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link: Any = self
        self.calls = CallLifecycle(link, report, self.codec, self.allocator, limits, fingerprint)
        self.prefill_budget = PrefillBudget(most)
        rows = max_rows or model.counts.largest
        self.engine = Engine(link, self.forward, self.calls, self.prefill_budget, rows, lambda: self.now)

    # ---- the link

    def put(self, message: Any) -> None:
        """Queue a message of a worker thread."""
        self._thread_said.put(message)

    def get(self, block: bool, timeout: float = PATIENCE) -> Any:
        if self.said:
            return tokenized(self.codec, self.said.popleft())
        if not block:
            return self._thread_said.get_nowait()
        if any(request.busy for request in self.calls._requests):
            return self._thread_said.get(timeout=PATIENCE)
        if self.calls.swap_io.thread._threads:
            self.calls.swap_io.thread.submit(int).result(PATIENCE)  # it may still be busy for a cancelled request
        return Stop() if self._thread_said.empty() else self._thread_said.get()

    def send(self, *messages: Any) -> None:
        self.sent += messages

    # ---- the device

    def forward(self, spans: list[Span]) -> ForwardOutput:
        self.now += self.seconds(spans)
        self.said.extend(self.during.pop(len(self.batches), ()))
        self.batches.append(spans)
        self.before(spans)
        return self.after(spans, self._forward(spans))

    # ---- for tests

    def run(self, *messages: Any) -> Kernel:
        """Run until there is nothing more to run."""
        self.said.extend(messages)
        self.engine.run()
        return self

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    @property
    def ids(self) -> dict[int, list[int]]:
        ids: dict[int, list[int]] = self._gather("ids", list)
        return ids

    @property
    def text(self) -> dict[int, str]:
        text: dict[int, str] = self._gather("text", str)
        return text

    @property
    def logprobs(self) -> dict[int, list[float]]:
        logprobs: dict[int, list[float]] = self._gather("logprobs", list)
        return logprobs

    @property
    def rows(self) -> int:
        """Tokens that were handed to the model."""
        return sum(len(span.tokens) for spans in self.batches for span in spans)

    def _gather(self, field: str, kind: type) -> Any:
        found: Any = defaultdict(kind)
        for bundle in self.of(Bundle):
            for progress in bundle.progress:
                found[progress.sequence] += getattr(progress, field)
        return found


def alone(message: Admit, model: Ready | None = None) -> list[int]:
    """The tokens of a call that runs alone, on the Llama model unless another is given."""
    return Kernel(model or ready("Llama")).run(message).ids[message.sequence]


def admit(sequence: int, prompt: str = "", lease: int = 1000, max_tokens: int | None = 10, **sampling: Any) -> Admit:
    """A call with a prompt of its own."""
    prompt = prompt or f"Prompt number {sequence}" * sequence
    return Admit(sequence, prompt, Sampling(max_tokens=max_tokens, **sampling), lease)
