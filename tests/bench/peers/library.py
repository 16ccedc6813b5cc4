"""Decoding by the plain library, transformers in float32: `generate` one after another, and its continuous batching.

Used by the decode bench, in its own process. Ends of text are ignored.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import torch
from roofline import Shape, shape
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation import BaseStreamer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

PAGE = 128  # tokens of a page of its cache: a whole sequence of the bench


class Clock(BaseStreamer):
    """The times of the prompt and then of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


class Library:
    """The model in `folder`, as transformers saved it."""

    def __init__(self, folder: Path) -> None:
        disable_progress_bar()
        set_verbosity_error()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def shape(self) -> Shape:
        return shape(self._model.config, self._model.num_parameters())

    def apart(self, prompt: list[int], tokens: int) -> tuple[int, float]:
        """Tokens after the first by `generate`, and the seconds they took."""
        clock = Clock()
        ids = torch.tensor([prompt])
        self._model.generate(ids, self._greedy(tokens), attention_mask=torch.ones_like(ids), streamer=clock)
        _, first, *_, last = clock.times
        return tokens - 1, last - first

    def together(self, prompts: list[list[int]], tokens: int) -> tuple[int, float]:
        """Tokens of continuous batching after all sequences had their first, and the seconds they took.

        All prompts run in its first step. Raises `RuntimeError` with the cause if one fails.
        """
        room = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=2 * len(prompts),
            max_batch_tokens=sum(map(len, prompts)),
            allow_block_sharing=False,
        )
        outputs = self._model.generate_batch(prompts, self._greedy(tokens), room, record_timestamps=True).values()
        if len(outputs) < len(prompts) or any(output.error for output in outputs):
            raise RuntimeError(next((output.error for output in outputs if output.error), "requests were lost"))
        times = [time for output in outputs for time in output.timestamps]
        first = max(output.timestamps[0] for output in outputs)
        return sum(time > first for time in times), max(times) - first

    def _greedy(self, tokens: int) -> GenerationConfig:
        return GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
