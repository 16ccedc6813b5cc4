"""Words for people: counts, places, durations and names in the sentences that explain a wait.

Called by the subsystems that explain their waits. It never escapes anything: the command line does, before it prints.
"""

from __future__ import annotations

from ipc.foreign import class_name, text_by

MAX_TEXT = 80  # characters of a name that a sentence quotes


def quoted(name: object) -> str:
    """A name that an agent chose, cut to `MAX_TEXT` characters. Never raises, although agents choose its class, too."""
    text = text_by(str, name)
    if text is None:
        return f"a {class_name(name)}"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as "1 message" or "2 messages"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def verb(number: int, singular: str, plural: str) -> str:
    """The form of a verb for a subject of this number, such as "is" or "are"."""
    return singular if number == 1 else plural


def ordinal(number: int) -> str:
    """Such as "1st", "2nd", "3rd", "11th"."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def show_seconds(seconds: float) -> str:
    """A duration in at most two units, such as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for size, larger, smaller in ((86400, "d", "h"), (3600, "h", "min"), (60, "min", "s")):
        if whole >= size:
            rest = whole % size // {"d": 3600, "h": 60, "min": 1}[larger]
            return f"{whole // size} {larger} {rest} {smaller}" if rest else f"{whole // size} {larger}"
    return f"{whole} s"


def listed(texts: list[str], total: int | None = None) -> str:
    """Texts as a list in a sentence: "a, b and c", or "a, b and 3 others" if there are more than `texts`."""
    others = 0 if total is None else total - len(texts)
    parts = [*texts, counted(others, "other")] if others > 0 else texts
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
