"""Greedy decoding of several sequences at once by llama.cpp: one `llama_decode` a step over all of them.

Run by the decode bench, in an environment of its own where cyllama is installed. It reads lines of JSON: one
with prompts starts over and runs them, one with a number of steps runs these. Ends of text are ignored.
"""

import json
import os
import sys
from time import perf_counter

# Turns of a waiting thread before it sleeps, in place of the library's 300,000: no slower alone, and several times
# faster beside a process that keeps one of the cores busy. Must be set before the library loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from cyllama.llama.llama_cpp import (
    LlamaBatch,
    LlamaContext,
    LlamaContextParams,
    LlamaModel,
    LlamaModelParams,
    LlamaSampler,
    LlamaSamplerChainParams,
    disable_logging,
)


class Decoder:
    """Sequences with room for `context` tokens each."""

    def __init__(self, model: LlamaModel, prompts: list[list[int]], context: int, threads: int) -> None:
        params = LlamaContextParams()
        params.n_seq_max = len(prompts)
        params.n_ctx = len(prompts) * context
        params.n_batch = sum(map(len, prompts))
        params.n_threads = params.n_threads_batch = threads
        self.context = LlamaContext(model, params)
        self.batch = LlamaBatch(n_tokens=params.n_batch, embd=0, n_seq_max=1)
        self.sampler = LlamaSampler(LlamaSamplerChainParams())
        self.sampler.add_greedy()
        self.lengths = [0] * len(prompts)
        self.run(prompts)

    def step(self) -> None:
        self.run([[token] for token in self.newest])

    def run(self, tokens: list[list[int]]) -> None:
        """Append `tokens` to each sequence, and sample the next token of each."""
        self.batch.clear()
        last = []
        for sequence, added in enumerate(tokens):
            end = self.lengths[sequence] + len(added)
            for position, token in enumerate(added, self.lengths[sequence]):
                self.batch.add(token, position, [sequence], position == end - 1)
            self.lengths[sequence] = end
            last.append(self.batch.n_tokens - 1)
        self.context.decode(self.batch)
        self.newest = [self.sampler.sample(self.context, place) for place in last]


def main() -> None:
    disable_logging()
    model, decoder = None, None
    for line in sys.stdin:
        asked = json.loads(line)
        started = perf_counter()
        if "prompts" in asked:
            if model is None:
                params = LlamaModelParams()
                params.n_gpu_layers = 0
                model = LlamaModel(asked["path"], params)
            decoder = None  # two contexts at once would take twice the memory
            decoder = Decoder(model, asked["prompts"], asked["context"], asked["threads"])
        else:
            for _ in range(asked["steps"]):
                decoder.step()
        print(json.dumps(perf_counter() - started), flush=True)


main()
