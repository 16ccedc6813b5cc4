"""A generation of the simulated device: numbered words, or a text that fits its constraint.

Owned by the device. Each token is a function of the position and the seed, or of the position and the constraint, so a
sequence that is admitted again continues as if it had never stopped. It never looks at the meaning of a prompt, only at
the lengths of its words.
"""

from __future__ import annotations

import hashlib
import math

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers import protocol
from kernel.drivers.reply_limit import ReplyLimit
from kernel.drivers.simulated.constrained import minimal_reply

PIECE = 4  # characters per token in a constrained reply


class SimulatedSequence:
    """One generation, with `generated` tokens so far, of at most `limit`. Its first `computed` tokens have KV."""

    def __init__(self, admit: protocol.Admit, prompt_ids: list[int], limit: ReplyLimit) -> None:
        self.id = admit.sequence
        self.process = admit.process
        self.prompt_ids = prompt_ids
        self.generated = len(admit.generated)
        self.lease = admit.lease
        self.max_tokens = limit.tokens
        self._last_reason = limit.reason
        self.computed = 0
        self.reserved: int | None = None  # bytes of KV memory; None while the sequence has none
        self._seed = admit.sampling.seed or 0
        self._logprobs = admit.sampling.logprobs
        constraint = admit.sampling.constraint
        text = None if constraint is None else minimal_reply(constraint)
        self._pieces = None if text is None else [text[at : at + PIECE] for at in range(0, len(text), PIECE)]

    @property
    def length(self) -> int:
        """How many tokens it has: those of the prompt and the generated ones."""
        return len(self.prompt_ids) + self.generated

    @property
    def ended(self) -> str:
        """The reason why the sequence ended; empty while it runs."""
        if self._pieces is not None and self.generated >= len(self._pieces):
            return "stop"
        return self._last_reason if self.generated >= self.max_tokens else ""

    def next(self, nan: bool) -> protocol.Progress:
        """Generate one token. If `nan` is set, its logprob is NaN."""
        if self._pieces is None:
            token, text = simulated_token(self._seed, self.generated)
        else:
            text = self._pieces[self.generated]
            token = hashed(text)
        self.generated += 1
        self.lease -= 1
        self.computed = self.length
        logprobs = [math.nan if nan else -(token % 1000 + 1) / 1000] if self._logprobs else []
        return protocol.Progress(self.id, [token], text, logprobs)


def simulated_token(seed: int, position: int) -> tuple[int, str]:
    """The token at `position`: an id below 50,000, and its text such as "s1234 "."""
    token = hashed(f"{seed}:{position}")
    return token, f"s{token} "


def hashed(text: str) -> int:
    """A hash of `text`: a number below 50,000."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 50_000


def words(prompt: list[ChatMessage] | str) -> list[int]:
    """The token ids of a prompt: the length of each of its words. Raises `InvalidPrompt` for an empty prompt."""
    text = prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)
    ids = [len(word) for word in text.split()]
    if not ids:
        raise InvalidPrompt("the prompt is empty; pass some text")
    return ids
