"""What each policy is for, by hand-worked examples: a token takes a second, and everything comes out exactly."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.policy.catalogue import PolicySettings, make
from kernel.policy.program import Program
from tests.support.policy_desk import Desk, Job, play


def program(number: int, service: float = 0.0, **fields: object) -> Program:
    made = Program(number, **fields)  # type: ignore[arg-type]
    made.service = service
    return made


# ---- fifo and round robin


def test_fifo_lets_the_first_finish_first_however_long_it_is() -> None:
    assert Desk("fifo").come(Job(0, 24), Job(1, 3), Job(2, 3)).finish().done == [0, 1, 2]


def test_round_robin_gives_a_quantum_to_each_in_turn() -> None:
    """The example of Silberschatz, Galvin, Gagne, 5.3.3: bursts of 24, 3 and 3, a quantum of 4."""
    desk = Desk("round_robin", quantum=4).come(Job(0, 24), Job(1, 3), Job(2, 3))
    desk.finish()
    assert desk.done == [1, 2, 0]
    assert desk.history == [
        (0.0, "run", (0,)),
        (4.0, "run", (1,)),
        (4.0, "preempt", (0,)),
        (7.0, "run", (2,)),
        (10.0, "run", (0,)),
        *((float(at), "run", (0,)) for at in (14, 18, 22, 26)),
    ]


@given(tokens=st.lists(st.integers(1, 30), min_size=2, max_size=12), slots=st.integers(1, 4), quantum=st.integers(1, 9))
def test_no_turn_of_round_robin_goes_on_after_its_quantum_while_others_wait(
    tokens: list[int], slots: int, quantum: int
) -> None:
    desk = Desk("round_robin", slots, quantum=quantum)
    desk.come(*(Job(number, count) for number, count in enumerate(tokens)))
    while desk.waiting or desk.running:
        before = set(desk.running)
        decision = desk.decide()
        assert all(grant.tokens == quantum for grant in decision.run)
        if before & {grant.job.id for grant in decision.run}:  # nobody waits who did not have as much just now
            assert set(desk.waiting) == {job.id for job in decision.preempt}
        desk.turn()


def test_a_costly_preemption_stretches_the_quantum() -> None:
    desk = Desk("round_robin", quantum=4).come(*(Job(number, 40, switch_cost=5.0) for number in range(2)))
    desk.decide()
    assert desk.grants == {0: 20}
    assert desk.finish().preemptions == 2


# ---- skip-join multi-level feedback


def test_mlfq_sinks_by_what_a_call_made_and_lets_a_fresh_one_pass_at_once() -> None:
    desk = Desk("mlfq", quantum=4, starvation=0.0).come(Job(0, 100), Job(1, 100))
    assert desk.turns(4).turn().on_slots == [1]  # 0 has left the first level
    desk.turns(3).turn()
    assert desk.on_slots == [0]
    desk.come(Job(2, 3)).turn()
    assert desk.on_slots == [2]
    desk.turns(2).turn()
    assert (desk.on_slots, desk.done) == ([0], [2])
    assert desk.grants[0] > 0


def test_mlfq_lets_a_long_prompt_join_below() -> None:
    """A prompt of 24 takes the time of 12 tokens: the first level that lasts as long is the third, of 16."""
    desk = Desk("mlfq", quantum=4, starvation=0.0).come(Job(0, 9, prompt=24), Job(1, 9), Job(2, 9))
    assert desk.line == [1, 2, 0]
    assert desk.finish().done == [1, 2, 0]


def test_mlfq_promotes_the_starved_for_a_turn_of_its_level() -> None:
    desk = Desk("mlfq", quantum=2, starvation=5.0).come(Job(0, 40)).turns(6)
    numbers = itertools.count(1)
    waited = 0
    while 0 not in desk.running or not waited:
        if len(desk.waiting) + len(desk.running) < 3:
            desk.come(Job(next(numbers), 2))
        desk.turn()
        waited += 1
    # It had 6 tokens, so its level is the third, 8 wide; it is starved after 5 times as long as those took.
    assert 30 <= waited <= 36
    assert desk.grants[0] == 7


# ---- weighted fair


def test_fair_serves_owners_and_not_calls() -> None:
    """One owner with nine calls and one with one: each gets half."""
    desk = Desk("fair", quantum=5)
    desk.come(*(Job(number, 100, owner="many") for number in range(9)), Job(9, 100, owner="one"))
    desk.turns(100)
    assert abs(desk.made[9] - 50) <= 5


def test_fair_gives_an_owner_its_weight() -> None:
    desk = Desk("fair", slots=2, quantum=3, weights={"heavy": 3.0})
    desk.come(*(Job(number, 1000, owner=["light", "heavy"][number % 2]) for number in range(8)))
    desk.turns(400)
    heavy = sum(made for number, made in desk.made.items() if number % 2)
    assert abs(heavy - 600) <= 12
    other = make(PolicySettings(kind="fair", quantum=3))
    assert other is not desk.policy


def test_fair_counts_prompts_at_their_price() -> None:
    desk = Desk("fair", quantum=10, prompt_weight=0.5)
    reader = Job(0, 10, owner="reads", prompt=80)
    desk.come(reader, Job(1, 45, owner="writes"), Job(2, 10, owner="reads"), Job(3, 45, owner="writes"))
    desk.turn()
    desk.read(reader)
    assert desk.finish().done == [0, 1, 2, 3]  # 50 for the first, so its owner waits for 45 of the other, and then some


def test_who_was_idle_has_saved_nothing_up() -> None:
    desk = Desk("fair", quantum=5).come(*(Job(number, 200, owner="busy") for number in range(2))).turns(100)
    desk.come(Job(2, 200, owner="late"), Job(3, 200, owner="late")).turns(100)
    assert abs(desk.made[2] + desk.made[3] - 50) <= 5


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4), quantum=st.integers(1, 12), weight=st.floats(0.2, 5))
def test_the_service_gap_of_busy_owners_stays_within_the_proven_bound(
    seed: int, slots: int, quantum: int, weight: float
) -> None:
    dice = random.Random(seed)
    desk = Desk("fair", slots, quantum=quantum, weights={"b": weight})
    served = {"a": 0.0, "b": 0.0}
    prompt = 20
    gaps: list[float] = []
    numbers = itertools.count()
    for _ in range(300):
        for owner in "ab":  # always busy: more in the line than there are slots
            while sum(job.program.owner == owner for job in desk.waiting.values()) <= slots:
                desk.come(Job(next(numbers), dice.randint(1, 40), owner=owner, prompt=dice.randint(0, prompt)))
        before = set(desk.made) - set(desk.waiting) - set(desk.running)
        desk.decide()
        for number, job in desk.running.items():
            if not desk.made[number] and number not in before and job.prompt:
                desk.read(job)
                served[job.program.owner] += 0.5 * job.prompt
                job.prompt = 0
        for job in desk.running.values():
            served[job.program.owner] += 1
        desk.turn()
        gaps.append(served["a"] - served["b"] / weight)
    bound = 2 * slots * (0.5 * prompt + quantum) / min(1, weight)
    assert max(gaps) - min(gaps) <= bound


# ---- attained service


def test_attained_puts_the_call_of_a_fresh_program_before_those_of_an_old_one() -> None:
    """Calls are strangers to each other and programs are not: the tenth short call of a long one waits."""
    old, fresh = program(1, service=500.0), program(2)
    desk = Desk("attained", quantum=8).come(Job(0, 4, program=old), Job(1, 4, program=old), Job(2, 20, program=fresh))
    assert desk.line == [2, 0, 1]
    assert desk.finish().done == [2, 0, 1]


@pytest.mark.parametrize(("kind", "places"), [("fifo", range(1, 11)), ("attained", range(10, 20))])
def test_a_program_that_fans_out_floods_a_fifo_and_not_attained_service(kind: str, places: range) -> None:
    """Nine of its ten calls wait for those of the ten programs that came after it."""
    wide = program(0)
    desk = Desk(kind, quantum=10, starvation=0.0)
    desk.come(*(Job(number, 10, program=wide) for number in range(10)))
    desk.come(*(Job(number, 10, program=program(number)) for number in range(10, 20)))
    desk.finish()
    assert [20 - place for place, number in enumerate(desk.done) if number >= 10] == list(reversed(places))


def test_attained_counts_what_its_program_has_had_while_a_call_waits() -> None:
    both, other = program(1), program(2)
    desk = Desk("attained", slots=1, quantum=8).come(Job(0, 8, program=both), Job(1, 8, program=both))
    desk.turns(7)
    desk.come(Job(2, 8, program=other)).turn()
    assert desk.turn().on_slots == [2]  # though 1 came first, and had nothing itself
    assert desk.finish().done == [0, 2, 1]


def test_the_path_counts_and_not_the_width_of_a_program() -> None:
    """A wide program of two short steps goes before a chain that is as long as its sum."""
    wide, chain = program(1, service=100.0), program(2, service=60.0)
    jobs = [Job(0, 4, program=chain, path=60.0), Job(1, 4, program=wide, path=10.0), Job(2, 4, program=wide, path=10.0)]
    assert Desk("attained_dag", quantum=8).come(*jobs).finish().done == [1, 2, 0]
    jobs = [Job(0, 4, program=chain, path=60.0), Job(1, 4, program=wide, path=10.0), Job(2, 4, program=wide, path=10.0)]
    assert Desk("attained", quantum=8).come(*jobs).finish().done == [0, 1, 2]


# ---- earliest deadline


def test_edf_preempts_for_an_earlier_deadline_and_meets_all_that_can_be_met() -> None:
    desk = Desk("edf").come(Job(0, 10, deadline=100.0), Job(1, 10)).turns(3)
    desk.come(Job(2, 5, deadline=20.0)).turn()
    assert desk.on_slots == [2]
    assert desk.finish().done == [2, 0, 1]
    assert desk.shed == []


def test_edf_sheds_what_cannot_be_done_in_time_and_only_while_it_waits() -> None:
    desk = Desk("edf")
    for number in range(30):  # it learns that calls make what they may, at a token a second
        desk.come(Job(number, 4, deadline=1e6))
    desk.finish()
    desk.come(Job(100, 20, deadline=desk.now + 10)).turn()
    assert desk.shed == [100]
    hopeful = Job(101, 8, deadline=desk.now + 10)
    desk.come(hopeful).turn()
    hopeful.program.deadline = desk.now - 1
    assert desk.finish().done[-1] == 101


def test_edf_sheds_nothing_that_may_yet_be_short() -> None:
    """As long as nothing is known of how much of their limits calls make, one token is taken to be enough."""
    desk = Desk("edf").come(Job(0, 3, deadline=50.0), Job(1, 1000, deadline=20.0))
    desk.turns(2)
    assert (desk.shed, desk.on_slots) == ([], [1])
    late = Job(2, 1, deadline=1.0)
    desk.come(late).turn()
    assert desk.shed == [2]


def test_edf_takes_the_quickest_pace_of_late_since_a_batch_may_get_smaller() -> None:
    policy = make(PolicySettings(kind="edf"))
    policy.arrive(Job(0, 100), 0.0)
    policy.decide(1, 0.0)
    now = 0.0
    for seconds in (1.0, *[10.0] * 20):  # alone, and then beside many
        now += seconds
        policy.progress(Job(0, 100), 1, now)
    policy.arrive(Job(1, 1, deadline=now + 5), now)
    assert not policy.decide(1, now).shed
    policy.arrive(Job(2, 1, deadline=now + 1), now)
    assert [job.id for job in policy.decide(1, now).shed] == [2]


def _feasible(dice: random.Random, count: int) -> list[tuple[int, Job]]:
    """Jobs whose deadlines an order meets: that in which they are made here, with some slack."""
    jobs, busy = [], 0
    for number in range(count):
        at = busy + dice.randint(-6, 3)
        tokens = dice.randint(1, 8)
        busy = max(busy, at) + tokens
        jobs.append((max(at, 0), Job(number, tokens, deadline=busy + dice.choice([0.0, 1.0, 9.0]))))
    return jobs


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 25))
def test_edf_meets_all_deadlines_on_one_slot_that_any_order_meets(seed: int, count: int) -> None:
    jobs = _feasible(random.Random(seed), count)
    ends: dict[int, float] = {}
    desk = Desk("edf")

    def look(turn: int) -> None:
        for number in desk.done:
            ends.setdefault(number, desk.now)

    play(desk, jobs, look)
    look(0)
    assert desk.shed == []
    assert all(ends[job.id] <= job.program.deadline for _, job in jobs if job.program.deadline is not None)


# ---- highest response ratio


def test_hrrn_lets_the_short_pass_until_the_long_has_waited_for_its_length() -> None:
    desk = Desk("hrrn").come(Job(0, 30)).turn()
    desk.come(Job(1, 16)).turns(9)
    desk.come(Job(2, 4))
    desk.finish()
    # At 30 they have waited 29 and 20: ratios 1 + 29/16 and 1 + 20/4.
    assert desk.done == [0, 2, 1]
    desk = Desk("hrrn").come(Job(0, 30)).turn()
    desk.come(Job(1, 16)).turns(25)
    desk.come(Job(2, 4))
    # At 30: 1 + 29/16 and 1 + 4/4.
    assert desk.finish().done == [0, 1, 2]


# ---- auto


def auto(desk: Desk) -> str:
    return desk.policy.chosen  # type: ignore[attr-defined,no-any-return]


def test_auto_changes_nothing_as_long_as_nobody_has_to_wait() -> None:
    desk = Desk("auto", slots=4)
    for number in range(30):
        desk.come(Job(number, 3, owner="ab"[number % 2])).turn()
    assert auto(desk) == "priority"
    assert desk.policy.reason == "priority: nobody has had to wait yet"


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
    assert desk.policy.quantum == 8  # type: ignore[attr-defined]  # a quarter, the least: 20 s x 2 / 10 is less
    assert "1 s a token" in desk.policy.reason
