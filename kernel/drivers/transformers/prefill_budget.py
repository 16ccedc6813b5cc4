"""Decides how many tokens of prompts each step computes, so that a long prompt does not slow down other sequences.

The engine asks before each step, and reports after it how long the step took. It never sees a sequence, only counts and
times.
"""

from __future__ import annotations

from typing import NamedTuple

from kernel.drivers.transformers.attention import TILE

SLOWER = 1.6  # a step with prompts may take this many times as long as a step without
FASTER = 1.3  # below this ratio, prompts may get more tokens
SMOOTHING = 0.8  # weight of the past in a measured time
PROBE = 32  # steps with prompts before one without, so that the time of a step without prompts stays known
DRIFT = 4 / 3  # a step without prompts also follows when the count of generating sequences has changed by this factor
LEAP = 0.9  # prompts may add this share of the time of a step without prompts to one step after such steps


class PendingTokens(NamedTuple):
    """The next tokens of a request: `tokens` of them from position `start` on, of its prompt or `generated`."""

    start: int
    tokens: int
    generated: bool


class PrefillBudget:
    """Up to `most` tokens of prompts in a step while no sequence generates, else as many as keep steps short.

    Steps without prompts save up room for one larger step, a leap: a short prompt that arrives alone runs in one step.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = TILE  # tokens of prompts in a step beside generating sequences
        self._saved_room = 0  # tokens of room that recent steps did not use
        self._prompt_cost: float | None = None  # seconds that a token of a prompt adds to a step
        self._decode_seconds: float | None = None  # of a step without prompts
        self._decoding = 1  # sequences that generated in that step
        self._mixed = 0  # steps in a row that had both prompts and generated tokens
        self._oldest_first = False  # toggles: whether the oldest gets the room that is too small to halve
        self.prompt_token_seconds: float | None = None  # of a token of a prompt

    def shares(self, pending: list[PendingTokens]) -> list[int]:
        """The count of tokens that each of `pending`, the oldest first, may run in this step.

        Every single token runs. Longer rows share the room: the oldest gets up to half, so that it does not starve, and
        the shortest get the rest. If the room is too small to halve, the oldest and the shortest get it in turn. The
        rows of a prompt end at the end of a tile or of the prompt.
        """
        counts = [1 if request.tokens == 1 else 0 for request in pending]
        rows = [index for index, request in enumerate(pending) if request.tokens > 1]
        decoding = sum(request.generated and request.tokens == 1 for request in pending)
        room = self._room_beside(decoding) if decoding else self._most
        self._oldest_first = not self._oldest_first
        half = room // 2 if room >= 2 * TILE else room * self._oldest_first
        for index in rows[:1]:
            counts[index] = _fitting(pending[index], half)
            room -= counts[index]
        for index in sorted(rows, key=lambda index: pending[index].tokens):
            whole = _fitting(pending[index], counts[index] + room)
            room -= whole - counts[index]
            counts[index] = whole
        return counts

    def record_step(self, seconds: float, decoding: int, rows: int) -> None:
        """A step with `decoding` single generated tokens and `rows` tokens of longer rows took `seconds`."""
        if not decoding:
            if rows:
                self.prompt_token_seconds = _smoothed(self.prompt_token_seconds, seconds / rows)
            return
        self._mixed = self._mixed + 1 if rows else 0
        if not rows:
            known = self._decode_seconds is not None and not self._has_drifted(decoding)
            self._decode_seconds = _smoothed(self._decode_seconds if known else None, seconds)
            self._decoding = decoding
            self._saved_room = min(self._saved_room + self._room, self._most)
        elif self._decode_seconds is not None:
            self._prompt_cost = _smoothed(self._prompt_cost, max(seconds - self._decode_seconds, 0.0) / rows)
            self.prompt_token_seconds = self._prompt_cost
            if rows > self._room:
                self._saved_room = 0  # the step was a leap
            elif seconds > SLOWER * self._decode_seconds:
                self._room = max(TILE, min(self._room, rows) // 2)
            elif seconds < FASTER * self._decode_seconds and rows >= self._room:
                self._room = min(self._most, self._room + TILE)

    def _room_beside(self, decoding: int) -> int:
        """How many tokens of prompts may run beside `decoding` generated tokens."""
        if self._mixed >= PROBE or (self._mixed and self._has_drifted(decoding)):
            return 0
        if self._decode_seconds is None or not self._prompt_cost:
            return self._room
        return max(self._room, min(self._saved_room, int(LEAP * self._decode_seconds / self._prompt_cost)))

    def _has_drifted(self, decoding: int) -> bool:
        return not 1 / DRIFT <= decoding / self._decoding <= DRIFT


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now


def _fitting(pending: PendingTokens, room: int) -> int:
    """As many of the `pending` tokens as `room` holds, up to the end of a tile."""
    if pending.tokens <= room or pending.generated:
        return min(pending.tokens, room)
    return max(0, (pending.start + room) // TILE * TILE - pending.start)
