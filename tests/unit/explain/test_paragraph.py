"""The paragraph is a function of the facts alone."""

from __future__ import annotations

import msgspec
import pytest

from ipc.syscalls import ChainMember, Explanation, Participant, WaitFacts
from kernel.explain.paragraph import paragraph
from kernel.lib.wording import counted, listed, ordinal, quoted, show_seconds


def explanation(wait: WaitFacts, **more: object) -> Explanation:
    return msgspec.structs.replace(Explanation(7, "worker", "blocked", "", "0", 1, wait), **more)


def test_each_fact_has_its_sentence_in_a_fixed_order() -> None:
    wait = WaitFacts(
        kind="queue",
        doing="queued for a slot",
        seconds=3.0,
        place=2,
        line=4,
        ahead=[Participant(1, "a")],
        ahead_count=1,
        held="The slots are held by",
        holders=[Participant(2, "b", "9 tokens"), Participant(3, "c")],
        holder_count=4,
        state="two things are so",
        ends="a slot is free",
        timeout=8.0,
        next="The policy decides",
        awaits=2,
    )
    chain = [ChainMember(2, "b", "waiting for lock l", 1.0), ChainMember(3, "c", "ready")]
    assert paragraph(explanation(wait, chain=chain, cycle=7, notes=["a note"])) == (
        "Process 7 (worker) has been queued 3.0 s for a slot. It is 2nd of 4 in line. Ahead of it is process 1 (a). "
        "The slots are held by process 2 (b, 9 tokens), process 3 (c) and 2 others. Two things are so. Process 2 (b) "
        "has been waiting 1.0 s for lock l, and so for process 3. Process 3 (c) is ready. This chain of waits leads "
        "back to process 7. "
        "The wait ends when a slot is free, or in 8.0 s, when it times out. The policy decides. A note."
    )


def test_a_fact_that_is_missing_has_no_sentence() -> None:
    assert paragraph(explanation(WaitFacts(kind="running", doing="running"))) == "Process 7 (worker) is running."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_words_for_numbers_lists_and_names() -> None:
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 21, 112)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"]
    )
    assert [counted(1, "child", "children"), counted(2, "child", "children")] == ["1 child", "2 children"]
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(["a"], 3)] == ["", "a", "a and b", "a and 2 others"]
    assert quoted("x" * 100) == "x" * 77 + "..."


def test_a_name_of_an_odd_class_can_be_quoted() -> None:
    class Odd(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise SystemExit

    assert quoted(Odd("name")) == "a Odd"
    assert quoted("x" * 100) == "x" * 77 + "..."
