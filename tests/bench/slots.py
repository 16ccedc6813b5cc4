"""Decode rate of the transformers driver's bare engine, beside `generate` on the same asks one after another.

Run by hand: `python tests/bench/slots.py`. Quote the ratios: absolute rates move from machine to machine.
"""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from ipc.syscalls import ChatMessage, Sampling
from kernel.drivers.protocol import Admit, Admitted, Bundle, Done, Stop
from kernel.drivers.transformers.engine import Engine
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.sequence import Limits
from kernel.drivers.transformers.source import locate
from kernel.drivers.transformers.weights import Model, load

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmosd" / "models"
TOPICS = ["rain", "dragons", "the ocean", "Hamlet", "three fruits", "Python", "the number two", "France"]
TOKENS = 64
TOKENS_BESIDE_GENERATE = 32


class Kernel:
    """Asks `count` questions at once, and notes when tokens come."""

    def __init__(self, count: int, max_tokens: int) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.prompts: list[list[int]] = []
        self.started = time.perf_counter()
        self.first = self.last = 0.0  # when every sequence had its first token, and when the last one ended
        self.tokens = 0
        self._waiting = set(range(count))
        self._running = count
        for index in range(count):
            prompt = [ChatMessage("user", f"Tell me about {TOPICS[index % len(TOPICS)]}.")]
            self.inbox.put(Admit(index, prompt, Sampling(max_tokens=max_tokens, temperature=0), max_tokens))

    def send(self, *messages: Any) -> None:
        for message in messages:
            if isinstance(message, Admitted):
                self.prompts.append(message.prompt_ids)
            elif isinstance(message, Bundle):
                self._count(message)
            elif isinstance(message, Done):
                self._running -= 1
        if not self._running:
            self.last = time.perf_counter()
            self.inbox.put(Stop())

    def _count(self, bundle: Bundle) -> None:
        if not self._waiting:
            self.tokens += sum(len(progress.ids) for progress in bundle.progress)
        elif not self._waiting.difference_update(progress.sequence for progress in bundle.progress):
            self.first = self.first if self._waiting else time.perf_counter()


def run(model: Model, count: int, max_tokens: int) -> Kernel:
    kernel = Kernel(count, max_tokens)
    model.tokenizer.ends = frozenset()
    Engine(kernel, model.forward, model.tokenizer, model.memory, Limits(model.context, 256), 128).run()
    return kernel


def main() -> None:
    console = Console()
    model = load("embedded", locate("embedded"), Options(), CACHE, console.print)
    run(model, 1, 4)
    table = Table("sequences", "first tokens (s)", "decode tokens/s", "ratio to 1")
    single = 0.0
    for count in (1, 4, 16, 32, 64):
        kernel = run(model, count, TOKENS)
        rate = kernel.tokens / (kernel.last - kernel.first)
        single = single or rate
        table.add_row(str(count), f"{kernel.first - kernel.started:.2f}", f"{rate:.0f}", f"{rate / single:.1f}")
    console.print(table)

    kernel = run(model, 64, TOKENS_BESIDE_GENERATE)
    together = kernel.last - kernel.started
    plain = AutoModelForCausalLM.from_pretrained(next(CACHE.glob("SmolLM2*/")), dtype=torch.float32).eval()
    started = time.perf_counter()
    for prompt in kernel.prompts:
        plain.generate(
            torch.tensor([prompt]),
            max_new_tokens=TOKENS_BESIDE_GENERATE,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=0,
        )
    apart = time.perf_counter() - started
    table = Table("64 asks of 32 tokens", "seconds", "tokens/s", "ratio")
    for name, seconds in (("engine, all at once", together), ("generate, one after another", apart)):
        rate = 64 * TOKENS_BESIDE_GENERATE / seconds
        table.add_row(name, f"{seconds:.1f}", f"{rate:.0f}", f"{apart / seconds:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
