"""How much of each step goes to prompts, so that a long one holds up no neighbour.

Asked by the engine before each step and told after it how long it took. It knows counts and times, and no sequences.
"""

from __future__ import annotations

from typing import NamedTuple

from kernel.drivers.transformers.attention import TILE

SLOWER = 1.6  # times a step may take as long for the sake of prompts as one without them
FASTER = 1.3  # below this, prompts may get more
SMOOTHING = 0.8  # weight of the past in the time of a step without prompts
PROBE = (
    32  # steps with prompts after which one goes without: else nobody would know any more how long such a step takes
)
DRIFT = 4 / 3  # the same if so many times as many, or as few, generate as when that was measured
LEAP = 0.9  # of the time of a step without prompts: what prompts may add to one step after steps without any


class PendingPrompt(NamedTuple):
    """What a work has yet to run: so many `tokens` from position `start` on, of its prompt or `generated`."""

    start: int
    tokens: int
    generated: bool


class PrefillBudget:
    """`most` tokens of prompts a step while nobody generates; beside others as many as keep steps short.

    Steps without prompts save up for a leap: so a short prompt that comes alone is read at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = TILE
        self._saved = 0  # tokens that prompts had room for lately, and did not use
        self._cost: float | None = None  # seconds that a token of a prompt adds to a step
        self._alone: float | None = None  # seconds of a step without prompts
        self._singles = 1  # that generated then
        self._mixed = 0  # steps in a row that had both prompts and generated tokens
        self._turn = False  # of the oldest
        self.prompt_token: float | None = None  # seconds that a token of a prompt takes

    def shares(self, pending: list[PendingPrompt]) -> list[int]:
        """The tokens that each may run in this step, oldest work first.

        Every single token runs. Longer rows share the room: the oldest gets up to half, so that it does not starve, and
        the rest goes to those that are soonest done; what cannot be halved they get in turn. Rows of a prompt end where
        a tile does, or the prompt.
        """
        counts = [1 if work.tokens == 1 else 0 for work in pending]
        rows = [index for index, work in enumerate(pending) if work.tokens > 1]
        singles = sum(work.generated and work.tokens == 1 for work in pending)
        room = self._room_beside(singles) if singles else self._most
        self._turn = not self._turn
        half = room // 2 if room >= 2 * TILE else room * self._turn
        for index in rows[:1]:
            counts[index] = _fitting(pending[index], half)
            room -= counts[index]
        for index in sorted(rows, key=lambda index: pending[index].tokens):
            whole = _fitting(pending[index], counts[index] + room)
            room -= whole - counts[index]
            counts[index] = whole
        return counts

    def took(self, seconds: float, single: int, rows: int) -> None:
        """A step with `single` generated tokens and `rows` tokens of longer rows took so long."""
        if not single:
            if rows:
                self.prompt_token = _smoothed(self.prompt_token, seconds / rows)
            return
        self._mixed = self._mixed + 1 if rows else 0
        if not rows:
            known = self._alone is not None and not self._has_drifted(single)
            self._alone = _smoothed(self._alone if known else None, seconds)
            self._singles = single
            self._saved = min(self._saved + self._room, self._most)
        elif self._alone is not None:
            self._cost = _smoothed(self._cost, max(seconds - self._alone, 0.0) / rows)
            self.prompt_token = self._cost
            if rows > self._room:
                self._saved = 0  # that was a leap
            elif seconds > SLOWER * self._alone:
                self._room = max(TILE, min(self._room, rows) // 2)
            elif seconds < FASTER * self._alone and rows >= self._room:
                self._room = min(self._most, self._room + TILE)

    def _room_beside(self, singles: int) -> int:
        """How many tokens of prompts may run beside so many that generate."""
        if self._mixed >= PROBE or (self._mixed and self._has_drifted(singles)):
            return 0
        if self._alone is None or not self._cost:
            return self._room
        return max(self._room, min(self._saved, int(LEAP * self._alone / self._cost)))

    def _has_drifted(self, singles: int) -> bool:
        return not 1 / DRIFT <= singles / self._singles <= DRIFT


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now


def _fitting(work: PendingPrompt, room: int) -> int:
    """As many tokens of `work` as `room` holds, up to the end of a tile."""
    if work.tokens <= room or work.generated:
        return min(work.tokens, room)
    return max(0, (work.start + room) // TILE * TILE - work.start)
