"""Text in disguise: each character of a content stands for another one, so that a rendered template shows its origin.

`chat_template` renders a template a second time with contents in this form. A content still answers the template's
tests and methods ("</think>" in content, `split`, `strip`) as the real text would. It never changes a text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

PRIVATE = range(0x100000, 0x10FFFE)  # the last plane, of private characters
_PRIVATE = "\U00100000-\U0010fffd"
OF_A_CONTENT = re.compile(f"[{_PRIVATE}]")
RUN_OF_A_CONTENT = re.compile(rf'[{_PRIVATE}](?:[{_PRIVATE}\s"\\]*[{_PRIVATE}])?')  # with the spaces in it
_PIECE = 1 << 16  # characters that are translated at a time, so that other threads run in between


class Disguise(dict[int, str]):
    """Gives each character a private one, of those that are not in `used`, and back. One for each prompt.

    Whitespace, quotes, backslashes and C0 controls stay, so that templates trim and escape a content as they would.
    """

    def __init__(self, used: str) -> None:
        super().__init__()
        self._free = (code for code in PRIVATE if chr(code) not in used)
        self._back: dict[int, str] = {}

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if not (letter.isspace() or letter in '"\\' or letter < " "):
            private = next(self._free, None)
            if private is None:
                raise OverflowError(f"the text has more than {len(PRIVATE)} different characters")
            self._back[private] = letter
            letter = chr(private)
        self[code] = letter
        return letter

    def hide(self, text: str) -> HiddenText:
        """`text` in disguise. Raises `OverflowError` if the private characters do not suffice."""
        return HiddenText(_translated(text, self), self, text)

    def real(self, text: str) -> str:
        """`text` without the disguise; a text without one is returned as it is."""
        if isinstance(text, HiddenText):
            return text._real
        return _translated(text, self._back) if OF_A_CONTENT.search(text) else text


def _translated(text: str, table: dict[int, str]) -> str:
    return "".join(text[at : at + _PIECE].translate(table) for at in range(0, len(text), _PIECE))


class HiddenText(str):
    """A text whose characters are disguised, and which behaves as the real one when it is tested or cut.

    Its public names are those of `str`, since templates can call them.
    """

    _disguise: Disguise
    _real: str

    def __new__(cls, hidden: str, disguise: Disguise, real: str) -> HiddenText:
        """Make the text. `hidden` and `real` have the same length."""
        text = super().__new__(cls, hidden)
        text._disguise = disguise
        text._real = real
        return text

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        return hash(self._real)

    def __eq__(self, other: object) -> bool:
        return self._real == (self._disguise.real(other) if isinstance(other, str) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: str) -> bool:
        return self._real < self._disguise.real(other)

    def __gt__(self, other: str) -> bool:
        return self._real > self._disguise.real(other)

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str) and self._disguise.real(part) in self._real

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice[Any, Any, Any]) -> str:
        return HiddenText(super().__getitem__(key), self._disguise, self._real[key])

    def __add__(self, other: str) -> HiddenText:
        real = self._real + self._disguise.real(other)
        return HiddenText(super().__add__(other), self._disguise, real)

    def __radd__(self, other: str) -> HiddenText:
        real = self._disguise.real(other) + self._real
        return HiddenText(str.__add__(other, self), self._disguise, real)

    def startswith(self, part: str | tuple[str, ...], *bounds: Any) -> bool:
        return self._real.startswith(part, *bounds)

    def endswith(self, part: str | tuple[str, ...], *bounds: Any) -> bool:
        return self._real.endswith(part, *bounds)

    def find(self, part: str, *bounds: Any) -> int:
        return self._real.find(self._disguise.real(part), *bounds)

    def rfind(self, part: str, *bounds: Any) -> int:
        return self._real.rfind(self._disguise.real(part), *bounds)

    def index(self, part: str, *bounds: Any) -> int:
        return self._real.index(self._disguise.real(part), *bounds)

    def rindex(self, part: str, *bounds: Any) -> int:
        return self._real.rindex(self._disguise.real(part), *bounds)

    def count(self, part: str, *bounds: Any) -> int:
        return self._real.count(self._disguise.real(part), *bounds)

    def lstrip(self, letters: str | None = None) -> str:
        return self[len(self) - len(self._real.lstrip(letters)) :]

    def rstrip(self, letters: str | None = None) -> str:
        return self[: len(self._real.rstrip(letters))]

    def strip(self, letters: str | None = None) -> str:
        return self.lstrip(letters).rstrip(letters)

    def removeprefix(self, part: str) -> str:
        return self[len(part) :] if part and self.startswith(part) else self

    def removesuffix(self, part: str) -> str:
        return self[: -len(part)] if part and self.endswith(part) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        real = sep if sep is None else self._disguise.real(sep)
        return self._cut(self._real.split(real, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        real = sep if sep is None else self._disguise.real(sep)
        return self._cut(self._real.rsplit(real, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._cut(self._real.splitlines(keepends), 0)

    def partition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._cut(self._real.partition(self._disguise.real(sep)), 0)
        return first, middle, last

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._cut(self._real.rpartition(self._disguise.real(sep)), 0)
        return first, middle, last

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return self._changed(self._real.replace(old, new, count))
        known, pieces, at = self._disguise.real(old), [], 0
        for part in self._real.split(known, count):
            pieces.append(super().__getitem__(slice(at, at + len(part))))
            at += len(part) + len(old)
        # In one piece: a text of a million characters may have half a million places.
        real = self._real.replace(known, self._disguise.real(new), count)
        return HiddenText(str.join(new, pieces), self._disguise, real)

    def lower(self) -> str:
        return self._changed(self._real.lower())

    def upper(self) -> str:
        return self._changed(self._real.upper())

    def title(self) -> str:
        return self._changed(self._real.title())

    def capitalize(self) -> str:
        return self._changed(self._real.capitalize())

    def _cut(self, parts: Iterable[str], gap: int) -> list[str]:
        """The pieces of this text that are `parts` of the real one, in their order, `gap` characters apart."""
        pieces, at = [], 0
        for part in parts:
            at = self._real.index(part, at)
            pieces.append(self[at : at + len(part)])
            at += len(part) + gap
        return pieces

    def _changed(self, real: str) -> HiddenText:
        return self._disguise.hide(real)


def joined(parts: Iterable[str]) -> str:
    """The texts in one, as a template joins what it has rendered."""
    texts = list(parts)
    for text in texts:
        if isinstance(text, HiddenText):
            return HiddenText("".join(texts), text._disguise, "".join(map(text._disguise.real, texts)))
    return "".join(texts)
