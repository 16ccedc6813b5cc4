"""Compares the tokens of the driver's engine with those of transformers' `generate`, for one model file.

`test_model_files` calls `verdicts` for each family and each kind of file. The engine runs in this process, with one
thread, and all calls together. Greedy tokens must be equal, and so must each token's log probability, so that a small
fault shows even where it changes no token. It never compares with recorded numbers.
"""

from __future__ import annotations

import queue
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace

from ipc.errors import LlmosError
from ipc.syscalls import Sampling
from kernel.drivers.protocol import Admit, Bundle, Done, Load, SequenceFailed, Stop
from kernel.drivers.transformers import weights
from kernel.drivers.transformers.engine_builder import engine
from kernel.drivers.transformers.model_builder import Model
from kernel.drivers.transformers.model_manifest import ids
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.sampler import sample

TOKENS = 48  # of each reply
SOME = 8  # tokens of a reply from a model whose network has been compared before
VOCABULARY = 99  # not a multiple of 8
WINDOW = 24  # of models with a sliding window: fewer tokens than the long prompts have
KV = 10**7  # bytes
TOLERANCE = 5e-3  # of a log probability; float32 in another order of sums differs by a hundredth of this
TIE = 1e-3  # of a logit; of two tokens that are closer, each is right, because processors round differently
FIRST = 5  # the ids below are special
DRAWS = Sampling(logprobs=True, temperature=0.9, top_p=0.95, seed=7)
GREEDY = Sampling(logprobs=True)


def _prompt(number: int, length: int) -> list[int]:
    return [(number * place * place + 7 * place + number) % (VOCABULARY - FIRST) + FIRST for place in range(length)]


LONG = {1: _prompt(3, 40), 2: _prompt(5, 40)}  # these exceed the window at once, the others on the way
SHORT, DRAWN = 3, 4  # the calls with a greedy reply to a short prompt, and with a drawn reply
PROMPTS = LONG | {SHORT: _prompt(11, 5), DRAWN: _prompt(2, 9)}


class Reply(NamedTuple):
    """The tokens of one call and their log probabilities; of a reference also the logits [tokens, vocabulary]."""

    tokens: list[int]
    logprobs: list[float]
    logits: Any = None


class _Link:
    """The engine's link to a kernel that ends the engine when all calls have ended."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.prepare: Any = None
        self.replies = {number: Reply([], []) for number in PROMPTS}
        self.errors: list[str] = []
        self._open = set(PROMPTS)

    def send(self, *messages: Any) -> None:
        for message in messages:
            if isinstance(message, Bundle):
                for progress in message.progress:
                    self.replies[progress.sequence].tokens.extend(progress.ids)
                    self.replies[progress.sequence].logprobs.extend(progress.logprobs)
            elif isinstance(message, SequenceFailed):
                self.errors.append(str(message.error))
            if isinstance(message, Done | SequenceFailed):
                self._open.discard(message.sequence)
                if not self._open:
                    self.inbox.put(Stop())


def load(source: Path, cache: Path) -> Model:
    """Load `source` as a driver does, with its caches in `cache`."""
    options = Options(device="cpu", dtype="float32", kv_memory=KV, threads=1)
    return weights.load(Load("tiny", str(cache), TOKENS), source, options, lambda stage: None)


def replies(model: Model, tokens: int) -> dict[int, Reply]:
    """The replies of the driver's engine to all prompts together, each of `tokens` tokens."""
    link = _Link()
    serving = engine(link, model, Options(kv_memory=KV, kv_disk=0), Load("tiny", "", TOKENS))
    for number, prompt in PROMPTS.items():
        sampling = replace(DRAWS if number == DRAWN else GREEDY, max_tokens=tokens)
        link.inbox.put(link.prepare(Admit(number, "", sampling, TOKENS, prompt_ids=prompt)))
    serving.run()
    if link.errors:
        raise AssertionError(f"calls failed: {link.errors}")
    return link.replies


class Reference:
    """A model of transformers with its own attention, in float32, and its greedy replies to the long prompts."""

    def __init__(self, model: Any, tokens: int = TOKENS) -> None:
        self._model = model.float().eval()
        self._model.set_attn_implementation("eager")
        self._ends = ids(model.generation_config.eos_token_id)
        prompts = torch.tensor(list(LONG.values()))
        with torch.inference_mode():
            found = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        logits = torch.stack(found.logits, 1).float()
        self.generated = {
            number: self._reply(found.sequences[place, len(prompt) :].tolist(), logits[place])
            for place, (number, prompt) in enumerate(LONG.items())
        }

    def expected(self, number: int, found: list[int]) -> Reply:
        """The reply to prompt `number`. For prompts that `generate` has not run, the next token after each of `found`.

        That is the same as a generation, as long as all tokens before are equal.
        """
        if number in LONG:
            return self.generated[number]
        prompt = PROMPTS[number]
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([prompt + found])).logits[0, len(prompt) - 1 : -1].float()
        if number == DRAWN:
            tokens = [sample(row, DRAWS, len(prompt) + place) for place, row in enumerate(logits)]
        else:
            tokens = logits.argmax(-1).tolist()
        return self._reply(tokens, logits)

    def _reply(self, tokens: list[int], logits: Any) -> Reply:
        size = next((place for place, token in enumerate(tokens, 1) if token in self._ends), len(tokens))
        logprobs = logits.log_softmax(-1)
        return Reply(tokens[:size], [float(logprobs[place, tokens[place]]) for place in range(size)], logits)


def verdict(model: Model, reference: Reference, tokens: int = TOKENS) -> str:
    """Return "equal", or the first difference between `model` and `reference`."""
    for number, reply in replies(model, tokens).items():
        difference = _difference(number, reply, reference.expected(number, reply.tokens), tokens)
        if difference:
            return f"WRONG: prompt {number}, {difference}"
    return "equal"


def _difference(number: int, reply: Reply, expected: Reply, tokens: int) -> str:
    for place, token, right in zip(count(), reply.tokens, expected.tokens, strict=False):
        if token != right:
            if _tied(expected.logits[place], token, right, number, place):
                return ""  # the rest is the reply to another text
            return f"token {place}: {token} instead of {right}"
        found, known = reply.logprobs[place], expected.logprobs[place]
        if abs(found - known) > TOLERANCE:
            return f"token {place}: log probability {found:.4f} instead of {known:.4f}"
    size = min(tokens, len(expected.tokens))
    return "" if len(reply.tokens) == size else f"{len(reply.tokens)} tokens instead of {size}"


def _tied(logits: Any, token: int, right: int, number: int, place: int) -> bool:
    """Whether `token` would be chosen in the place of `right` if their logits moved by `TIE`."""
    moved = logits.clone()
    moved[token] += TIE
    moved[right] -= TIE
    sampling = DRAWS if number == DRAWN else GREEDY
    return sample(moved, sampling, len(PROMPTS[number]) + place) == token


def verdicts(source: Path, cache: Path, right: Any, *, in_full: bool, tokens: int = TOKENS) -> list[str]:
    """The verdict on the first and on the second load: "equal", "refused: " with the reason, or what is wrong.

    `right` is the model in transformers. Unless `in_full`, the replies of the second load are short.
    """
    found = []
    reference = None
    for _ in range(2):
        try:
            model = load(source, cache)
        except LlmosError as error:
            found.append(f"refused: {error}")
            continue
        reference = reference or Reference(right, tokens)
        found.append(verdict(model, reference, tokens))
        if not in_full:
            tokens = SOME
    return found
