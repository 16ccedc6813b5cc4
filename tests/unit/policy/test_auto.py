"""The policy that chooses a policy: when it changes its choice, the reason it gives, and how long a choice stays."""

from __future__ import annotations

import pytest

from tests.support.policy_desk import Desk, Job


def auto(desk: Desk) -> str:
    return desk.policy.chosen  # type: ignore[attr-defined,no-any-return]


def test_auto_changes_nothing_as_long_as_nobody_has_to_wait() -> None:
    desk = Desk("auto", slots=4)
    for number in range(30):
        desk.come(Job(number, 3, owner="ab"[number % 2])).turn()
    assert auto(desk) == "priority"
    assert desk.policy.reason == "priority: no call has had to wait yet"


@pytest.mark.parametrize(
    ("fields", "kind", "why"),
    [
        ([{"owner": "a"}, {"owner": "b"}], "fair", "2 owners compete"),
        ([{"owner": "a"}], "attained", "all calls are of one owner, without priorities or deadlines"),
        ([{"deadline": 1e6}, {"deadline": 1e6}, {}], "edf", "calls have a deadline"),
        ([{"owner": "a", "priority": 3}, {"owner": "b"}], "priority", ""),
    ],
)
def test_auto_picks_by_what_competes_and_says_why(fields: list[dict[str, object]], kind: str, why: str) -> None:
    desk = Desk("auto", slots=2, quantum=4)
    desk.come(*(Job(number, 40, **fields[number % len(fields)]) for number in range(12)))  # type: ignore[arg-type]
    desk.turns(11)
    assert auto(desk) == kind
    if why:
        assert desk.policy.reason.startswith(f"{kind} with a quantum of ")
        assert "after priority with a quantum of 4" in desk.policy.reason
        assert f"{why}; 10 wait for 2 slots" in desk.policy.reason.replace("8 of 12 ", "")


def test_auto_waits_before_it_follows_a_load_and_keeps_a_choice_for_a_while() -> None:
    desk = Desk("auto", slots=1, quantum=4).come(*(Job(number, 500, owner="a") for number in range(3)))
    kinds = []
    for turn in range(40):
        if turn == 20:
            desk.come(Job(100 + turn, 500, owner="b"))
        desk.turn()
        kinds.append(auto(desk))
    changes = [turn for turn in range(1, 40) if kinds[turn] != kinds[turn - 1]]
    assert [kinds[turn] for turn in changes] == ["attained", "fair"]
    assert changes == [10, 22]


def test_auto_shortens_the_quantum_when_the_line_is_long_and_tokens_are_slow() -> None:
    desk = Desk("auto", slots=2, quantum=32).come(*(Job(number, 500) for number in range(12))).turns(15)
    assert desk.policy.quantum == 8  # type: ignore[attr-defined]  # a quarter is the minimum: 20 s x 2 / 10 is less
    assert "1 s a token" in desk.policy.reason
