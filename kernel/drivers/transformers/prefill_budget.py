"""Decides how many tokens of prompts each step computes, so that a long prompt does not slow down other sequences.

The engine asks for the budget before each step, and reports afterwards how long the step took. This module never sees a
sequence, only counts and times.
"""

from __future__ import annotations

from typing import NamedTuple

from kernel.drivers.transformers.attention import TILE

SLOWER = 1.6  # a step with prompts may take this many times as long as a step without prompts
FASTER = 1.3  # if it takes less than this many times as long, later steps may have more tokens of prompts
SMOOTHING = 0.8  # weight of the past in a measured time
# After this many steps with prompts, one step runs without, so that the time of a step without prompts stays known.
PROBE = 32
# A step without prompts also runs when the count of generating sequences has changed by this factor since the last one.
DRIFT = 4 / 3
LEAP = 0.9  # a leap may take longer than a step without prompts by this share of its time


class PendingTokens(NamedTuple):
    """How many `tokens` a request can run next, from position `start` on: all of its prompt, or all `generated`."""

    start: int
    tokens: int
    generated: bool


class PrefillBudget:
    """While no sequence generates, a step has up to `most` tokens of prompts; else, as many as keep it short.

    Steps without prompts save up room for one larger step, a leap, so that a short prompt that arrives alone runs in
    one step. The methods count a generated token that is recomputed with others of its request as a prompt token.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = TILE  # how many tokens of prompts a step beside generating sequences may have
        self._saved_room = 0  # how many more such tokens recent steps could have had
        self._prompt_cost: float | None = None  # seconds that a token of a prompt adds to a step
        self._decode_seconds: float | None = None  # that a step without prompts takes
        self._decoding = 1  # how many sequences generated in the last step without prompts
        self._mixed = 0  # how many steps in a row had both prompts and generated tokens
        self._oldest_first = False  # whether the oldest request gets room that is too small to halve; changes each step
        self.prompt_token_seconds: float | None = None  # that a token of a prompt takes, in the latest steps

    def shares(self, pending: list[PendingTokens]) -> list[int]:
        """How many tokens each of `pending`, the oldest first, may run in this step.

        A request with a single pending token runs it. Requests with more share the room: the oldest gets up to half, so
        that it does not starve, and the shortest get the rest. If the room is too small to halve, the oldest and the
        shortest get it in turn. The share of a prompt ends at the end of a tile or of the prompt.
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
        """Learn from a step with `decoding` single generated tokens and `rows` other tokens, which took `seconds`."""
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
    """How many of the `pending` tokens fit into `room`: of a prompt, all of them or up to the end of a tile."""
    if pending.tokens <= room or pending.generated:
        return min(pending.tokens, room)
    return max(0, (pending.start + room) // TILE * TILE - pending.start)
