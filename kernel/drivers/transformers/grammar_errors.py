"""Says in one sentence why the grammar library refuses a constraint, and where.

`constraint` calls it. The library writes several lines: the position in a grammar that it made itself, a drawing of the
place, and only then the cause. This module never changes a constraint.
"""

from __future__ import annotations

import re

POSITION = re.compile(r"(?:at )?(\d+)\((\d+)\): ")  # line and column in the grammar
PATTERN = re.compile(r"(?:invalid regex \".*\" \(in regex\): )?regex parse error:\n(.*?)\nerror: ", re.DOTALL)
AVAILABLE = "; following special tokens are available"  # names that `tokenizer_json` made up
ADVICE = {
    "look-around": "; leave out (?=...), (?!...), (?<=...) and (?<!...)",
    "lookarounds": r"; leave out \b, \<, \>, and ^ or $ inside the pattern",
    "backreferences": "; repeat the pattern in the place of the backreference",
    "lexer error": "; a text stands in double quotes, a pattern in slashes, and both end on their line",
    "unknown special token": "; a reply has ordinary tokens only: in double quotes, the name is text",
    "no start rule": "; name the first rule `start`",
}


def explain(text: str, kind: str) -> str:
    """The cause in the message `text` of the library, for a constraint of `kind`."""
    text = text.strip()
    place = POSITION.match(text)
    rest = text[place.end() :] if place else text
    found = PATTERN.match(rest)
    if found:
        cause = rest[found.end() :].partition("\n")[0]
        pattern, column = _drawn(found[1])
        cause = f"{cause}, at character {column} of the pattern {pattern}"
    else:
        cause = rest.partition("\n")[0].partition(AVAILABLE)[0]
    if place and kind == "grammar":
        cause = f"line {place[1]}, column {place[2]}: {cause}"
    advice = next((advice for word, advice in ADVICE.items() if word in cause), "")
    return cause + advice


def _drawn(drawing: str) -> tuple[str, int]:
    """The pattern in the library's drawing, and the number of the character to which the first caret points."""
    lines = drawing.split("\n")
    carets = next((number for number, line in enumerate(lines) if line.strip() and not line.strip(" ^")), None)
    if carets is None or carets == 0:
        return drawing.strip(), 1
    indent = len(lines[0]) - len(lines[0].lstrip(" "))
    return lines[carets - 1].strip(), lines[carets].index("^") - indent + 1
