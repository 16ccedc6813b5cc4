"""Decoding by the embedded model: the driver process beside llama.cpp, transformers, and the limits of the machine.

Run by `make bench`. All get the same prompts, decode greedily, and make the same number of tokens; rates count from the
moment when every sequence has its first token. Prompts are number series, which the model continues and does not end.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Lets the threads of a peer in this process wait at barriers as the driver's do. Must be set before they start.
os.environ |= {"GOMP_SPINCOUNT": "2000", "HF_HUB_OFFLINE": "1"}

import roofline
import torch
import transformers
from driver import Driver
from neighbours import Neighbours
from peers import environments
from peers.library import Library
from rich.console import Console
from rich.table import Table

from kernel.drivers.transformers.source import EMBEDDED, locate
from llmosd.daemon.settings import load

RUNS = {1: 3, 4: 3, 16: 1, 32: 1, 64: 1}  # sequences, and how often
PROMPT, PORTION, PORTIONS = 40, 21, 3
TOKENS = 1 + PORTION * PORTIONS
APART = 3  # prompts for `generate`, one after another: its rate does not depend on how many
TOGETHER = {16: 32, 64: 16}  # sequences, and tokens of each, for continuous batching, which is slow
CALM = 0.2  # processors that other processes may keep busy during a measurement

OURS = "llmosd"
PEERS = LLAMA, GENERATE, BATCHING = "llama.cpp", "generate", "continuous batching"
CYLLAMA = "cyllama==0.2.18"  # llama.cpp b9190
WIDTHS = {"fp16": 2, "fp32": 4}  # bytes
CONTEXT = PROMPT + TOKENS // 2

Work = Callable[[], tuple[int, float]]  # returns tokens and seconds


class Sample(NamedTuple):
    """One measurement. `busy`: processors that other processes kept busy meanwhile."""

    tokens: int
    seconds: float
    busy: float


class Figures:
    """The measurements, by decoder and number of sequences, or the error where there are none."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._samples: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        self._errors: dict[tuple[str, int], str] = {}

    def take(self, who: str, counts: Iterable[int], work: Work) -> None:
        """Measure once, for each of `counts`."""
        self._neighbours.share()
        try:
            sample = Sample(*work(), self._neighbours.share())
        except Exception as error:  # a peer that cannot do the work is a result, too
            self._errors |= {(who, count): f"{type(error).__name__}: {error}" for count in counts}
            return
        for count in counts:
            self._samples[who, count].append(sample)

    def rate(self, who: str, count: int) -> float | None:
        """The median of the calm samples, or of all if none was calm."""
        samples = self._samples[who, count]
        calm = [sample for sample in samples if sample.busy <= CALM] or samples
        return statistics.median(sample.tokens / sample.seconds for sample in calm) if samples else None

    def text(self, who: str, count: int) -> str:
        rate = self.rate(who, count)
        if rate is None:
            return self._errors.get((who, count), "")
        calm = any(sample.busy <= CALM for sample in self._samples[who, count])
        return f"{rate:,.0f}" if calm else f"~{rate:,.0f}"

    def ratio(self, who: str, count: int) -> str:
        ours, theirs = self.rate(OURS, count), self.rate(who, count)
        return f"{ours / theirs:.2f}" if ours and theirs else ""

    def lost(self) -> int:
        """Tokens that our sequences did not make because their text ended."""
        samples = ((count, sample) for count in RUNS for sample in self._samples[OURS, count])
        return sum(count * PORTION - sample.tokens for count, sample in samples)


def prompts(folder: Path) -> list[list[int]]:
    """Different prompts of `PROMPT` tokens each, as many as the largest count."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    series = (range(start, 1000, 1 + start % 5) for start in range(max(RUNS)))
    return [tokenizer(", ".join(map(str, numbers)))["input_ids"][:PROMPT] for numbers in series]


class Llama:
    """llama.cpp in a process of its own. `ask` sends it one request."""

    def __init__(self, ask: Callable[[Any], float]) -> None:
        self._ask = ask
        self._running = 0

    def begin(self, texts: list[list[int]], tokens: int) -> None:
        """Run `texts` up to the first token of each."""
        self._running = len(texts)
        room = -(-(PROMPT + tokens) // 64) * 64
        threads = torch.get_num_threads()
        self._ask({"path": str(locate(EMBEDDED)), "prompts": texts, "context": room, "threads": threads})

    def go(self, tokens: int) -> tuple[int, float]:
        return tokens * self._running, self._ask({"steps": tokens})


def in_turn(figures: Figures, driver: Driver, llama: Llama, texts: list[list[int]]) -> None:
    """Both run the prompts; then they decode each portion in turn."""
    for side in (driver, llama):
        side.begin(texts, TOKENS)
    for _ in range(PORTIONS):
        figures.take(OURS, [len(texts)], partial(driver.go, PORTION))
        figures.take(LLAMA, [len(texts)], partial(llama.go, PORTION))


def measured(driver: Driver, llama: Llama, library: Library, texts: list[list[int]]) -> Figures:
    figures = Figures(Neighbours())
    for side in (driver, llama):
        side.begin(texts[:4], 4)
        side.go(3)
    for count, runs in RUNS.items():
        for _ in range(runs):
            in_turn(figures, driver, llama, texts[:count])
    for text in texts[:APART]:
        figures.take(GENERATE, RUNS, partial(library.apart, text, TOKENS))
    for count, tokens in TOGETHER.items():
        figures.take(BATCHING, [count], partial(library.together, texts[:count], tokens))
    return figures


def rates(figures: Figures, load_average: float) -> Table:
    title = f"Decode tokens/s of all sequences, {os.cpu_count()} cores, load average {load_average:.1f} at the start"
    caption = (
        f"Prompts of {PROMPT} tokens, {TOKENS} decoded each. Medians of {PORTIONS} portions or more, in turn; "
        f"{BATCHING} once, with {TOGETHER} tokens. Measurements during which other processes kept more than "
        f"{CALM} processors busy are left out; ~ marks figures of which all were disturbed. {figures.lost()} tokens of "
        f"ours were not made because their text ended. {CYLLAMA}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}"
    )
    table = Table(title=title, caption=caption)
    for column in ("sequences", OURS, *PEERS, *(f"ours / {who}" for who in PEERS)):
        table.add_column(column, justify="right")
    for count in RUNS:
        texts = (figures.text(who, count) for who in (OURS, *PEERS))
        table.add_row(str(count), *texts, *(figures.ratio(who, count) for who in PEERS))
    return table


def bounds(figures: Figures, machine: roofline.Machine, shape: roofline.Shape) -> Table:
    """The limits of the machine with weights and KV in float16 and float32, and the share that we reach."""
    table = Table(
        title=f"Roofline: {machine.bandwidth / 1e9:.1f} GB/s read, {machine.speed / 1e9:.0f} G multiply-adds/s (fp32)",
        caption=f"A step with {CONTEXT} tokens of context in each sequence and {shape.parameters / 1e6:.1f} M weights: "
        "its bytes and multiply-adds, the tokens/s that follow, and the share of these that we reach.",
    )
    columns = ("MB", "tokens/s", "limit", "reached")
    for column in ("sequences", "G multiply-adds", *(f"{dtype}: {what}" for dtype in WIDTHS for what in columns)):
        table.add_column(column, justify="right")
    for count in RUNS:
        steps = [shape.step(count, CONTEXT, width) for width in WIDTHS.values()]
        cells = []
        for step in steps:
            bound = count / step.seconds(machine)
            ours = (figures.rate(OURS, count) or 0) / bound
            cells += [f"{step.bytes / 1e6:,.0f}", f"{bound:,.0f}", step.limit(machine), f"{ours:.2f}"]
        table.add_row(str(count), f"{steps[0].multiply_adds / 1e9:.2f}", *cells)
    return table


def main() -> None:
    load_average = os.getloadavg()[0]
    cache = load().cache_path / "models"
    with Driver(EMBEDDED, cache) as driver, environments.conversation("llama_decode.py", CYLLAMA) as ask:
        folder = next(cache.glob(f"{locate(EMBEDDED).stem}*/config.json")).parent
        machine, library = roofline.measured(), Library(folder)
        figures = measured(driver, Llama(ask), library, prompts(folder))
    console = Console(width=130)
    console.print(rates(figures, load_average))
    console.print(bounds(figures, machine, library.shape()))


if __name__ == "__main__":
    main()
