"""A generation of the simulated device: numbered words, or what its constraint asks for.

Owned by the device. Every token is a function of the seed and the position alone, or of the constraint and the
position, so that one that is admitted anew goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math

from ipc.errors import InvalidPrompt
from ipc.syscalls import ChatMessage
from kernel.drivers import protocol
from kernel.drivers.simulated.constrained import minimal_reply

PIECE = 4  # characters of a token of a constrained reply


class SimulatedSequence:
    """`made` tokens so far of at most `max_tokens`. `computed` counts the tokens whose keys and values are there."""

    def __init__(self, admit: protocol.Admit, prompt_ids: list[int], max_tokens: int) -> None:
        self.id = admit.sequence
        self.process = admit.process
        self.prompt_ids = prompt_ids
        self.made = len(admit.generated)
        self.lease = admit.lease
        self.max_tokens = max_tokens
        self.computed = 0
        self.reserved: int | None = None  # bytes; None while it has no memory
        self._seed = admit.sampling.seed or 0
        self._logprobs = admit.sampling.logprobs
        constraint = admit.sampling.constraint
        text = None if constraint is None else minimal_reply(constraint)
        self._pieces = None if text is None else [text[at : at + PIECE] for at in range(0, len(text), PIECE)]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt_ids) + self.made

    @property
    def ended(self) -> str:
        """The reason for its end, if it has ended."""
        if self._pieces is not None and self.made >= len(self._pieces):
            return "stop"
        return "length" if self.made >= self.max_tokens else ""

    def next(self, nan: bool) -> protocol.Progress:
        """Make one token; its logarithm of probability is no number if `nan`."""
        if self._pieces is None:
            token, text = simulated_token(self._seed, self.made)
        else:
            text = self._pieces[self.made]
            token = hashed(text)
        self.made += 1
        self.lease -= 1
        self.computed = self.length
        logprobs = [math.nan if nan else -(token % 1000 + 1) / 1000] if self._logprobs else []
        return protocol.Progress(self.id, [token], text, logprobs)


def simulated_token(seed: int, position: int) -> tuple[int, str]:
    """The token at `position`: an id below 50,000 and its text, such as "s1234 "."""
    token = hashed(f"{seed}:{position}")
    return token, f"s{token} "


def hashed(text: str) -> int:
    """A number below 50,000 that looks random and is a function of `text` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 50_000


def words(prompt: list[ChatMessage] | str) -> list[int]:
    """One id per word of the prompt. Raises `InvalidPrompt`."""
    text = prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)
    ids = [len(word) for word in text.split()]
    if not ids:
        raise InvalidPrompt("the prompt is empty")
    return ids
