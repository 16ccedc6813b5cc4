"""Makes text from outside harmless on a terminal.

The command line and the human log of the daemon pass every text through it that an agent, a model, an owner, a name or
an error supplied. Nothing else of the package escapes text for a terminal, and this module never writes.
"""

from __future__ import annotations

import re
from functools import cache

# The control characters of ASCII and Latin-1 except tab and newline: they move the cursor, and begin sequences that set
# the title, the clipboard or colours. The characters of Unicode's property Bidi_Control: they reorder the text around
# them. The separators of lines and paragraphs, and half surrogates, which no encoding of a terminal can write.
_CONTROLS = "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"
_UNICODE = "\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_UNSAFE = f"[{_CONTROLS}{_UNICODE}]"
_UNSAFE_IN_LINE = f"[\\t\\n{_CONTROLS}{_UNICODE}]"
_NOT_ASCII = "[\\x7f-\U0010ffff]"


def printable(text: str) -> str:
    r"""`text` with every character that could control a terminal replaced by its escape, such as `\x1b`."""
    return text if text.isprintable() else _compiled(_UNSAFE).sub(_escape, text)


def printable_line(text: str) -> str:
    """Like `printable`, but on one line: newlines and tabs are escaped, too."""
    return text if text.isprintable() else _compiled(_UNSAFE_IN_LINE).sub(_escape, text)


def printable_json(text: str, *, ascii_only: bool = False) -> str:
    r"""A JSON document with such characters replaced by escapes of JSON, such as `\u202e`: it still means the same."""
    if text.isprintable() and (text.isascii() or not ascii_only):
        return text
    return _compiled(_NOT_ASCII if ascii_only else _UNSAFE).sub(_escape_json, text)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Most commands print nothing unsafe, and these patterns take as long to compile as ten modules to import."""
    return re.compile(pattern)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _escape_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
