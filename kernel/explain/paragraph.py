"""The paragraph of an explanation: a pure function from the facts to sentences.

Called by the explainer. It derives nothing: what is not among the facts is not in the paragraph.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from ipc.syscalls import Explanation, Participant, WaitFacts
from kernel.lib.wording import listed, ordinal, quoted, show_seconds


def paragraph(explanation: Explanation) -> str:
    """One paragraph: what, since when, who, what ends it, what happens next."""
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in _sentences(explanation) if sentence)


def _sentences(explanation: Explanation) -> Iterator[str]:
    facts = explanation.wait
    subject = f"task {explanation.task}" if explanation.task else f"process {explanation.pid}"
    process = f"{subject} ({quoted(explanation.program)})"
    yield f"{process} {facts.doing}" if facts.kind == "ended" else f"{process} {_doing(facts.doing, facts.seconds)}"
    if facts.line > 1:
        yield f"it is {ordinal(facts.place)} of {facts.line} in line"
    if facts.ahead:
        yield f"ahead of it {'is' if facts.ahead_count == 1 else 'are'} {_names(facts.ahead, facts.ahead_count)}"
    if facts.held and facts.holders:
        yield f"{facts.held} {_names(facts.holders, facts.holder_count)}"
    yield facts.state
    for member, following in zip_longest(explanation.chain, explanation.chain[1:]):
        # A wait for a lock, for example, does not name the process that must act first.
        unnamed = following is not None and f"process {following.pid} " not in member.doing
        holder = f", and so for process {following.pid}" if unnamed else ""
        yield f"process {member.pid} ({quoted(member.program)}) {_doing(member.doing, member.seconds)}{holder}"
    if explanation.cycle:
        yield f"this chain of waits leads back to process {explanation.cycle}"
    yield _end(facts)
    yield facts.next
    yield from explanation.notes


def _doing(doing: str, seconds: float | None) -> str:
    """Such as "has been waiting 3.0 s for lock orders" or "has been suspended for 3.0 s by process 7 (shell)"."""
    if seconds is None:
        return f"is {doing}"
    participle, space, rest = doing.partition(" ")
    preposition = "" if rest.startswith("for ") else "for "
    return f"has been {participle} {preposition}{show_seconds(seconds)}{space}{rest}"


def _names(participants: list[Participant], total: int) -> str:
    names = [f"process {one.pid} ({quoted(one.program)}{', ' + one.note if one.note else ''})" for one in participants]
    return listed(names, total)


def _end(facts: WaitFacts) -> str:
    timer = "" if facts.timeout is None else f"in {show_seconds(facts.timeout)}, when {facts.timer}"
    if facts.ends and timer:
        return f"the wait ends when {facts.ends}, or {timer}"
    return f"the wait ends when {facts.ends}" if facts.ends else f"the wait ends {timer}" if timer else ""
