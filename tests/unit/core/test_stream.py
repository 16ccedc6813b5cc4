"""Streams of events: credit and order are respected, and a reader that is behind says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipc.messages import Emitted, Log, Result, State, Token
from kernel.core.stream import MAX_EMITTED, MAX_EVENTS, MAX_TEXT
from tests.support.system import Recorder


def test_no_more_events_go_out_than_there_is_credit(make_recorder: Any) -> None:
    recorder = make_recorder(credit=2)
    for n in range(5):
        recorder.stream.push(Emitted(1, n))
    assert recorder.events == [Emitted(1, 0), Emitted(1, 1)]
    recorder.stream.grant(1)
    assert len(recorder.events) == 3
    recorder.stream.grant(10)
    assert recorder.events == [Emitted(1, n) for n in range(5)]
    recorder.stream.push(Emitted(1, 5))
    assert recorder.events[-1] == Emitted(1, 5)


def test_waiting_neighbours_of_one_generation_join(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for text in ("a", "b", "c"):
        recorder.stream.push(Token(text, 1, 1))
    recorder.stream.push(Token("x", 1, 2))
    recorder.stream.push(Token("d", 1, 1))
    recorder.stream.grant(10)
    assert recorder.events == [Token("abc", 1, 1), Token("x", 1, 2), Token("d", 1, 1)]


def test_tokens_do_not_join_across_another_event(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    recorder.stream.push(Token("before", 1, 1))
    recorder.stream.push(Emitted(1, 1))
    recorder.stream.push(Token("after", 1, 1))
    recorder.stream.push(Token("wards", 1, 1))
    recorder.stream.grant(10)
    assert recorder.events == [Token("before", 1, 1), Emitted(1, 1), Token("afterwards", 1, 1)]


def test_tokens_join_again_after_part_of_them_went_out(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    recorder.stream.push(Token("a", 1, 1))
    recorder.stream.grant(1)
    recorder.stream.push(Token("b", 1, 1))
    recorder.stream.push(Token("c", 1, 1))
    recorder.stream.grant(5)
    assert recorder.events == [Token("a", 1, 1), Token("bc", 1, 1)]


def test_text_and_events_congest_and_reading_relieves(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    relieved = []
    recorder.stream.push(Token("x" * MAX_TEXT, 1, 1))
    assert recorder.stream.congested
    recorder.stream.when_drained(lambda: relieved.append(1))
    recorder.stream.grant(1)
    assert not recorder.stream.congested
    assert relieved == [1]
    recorder.stream.grant(1)
    assert relieved == [1]
    for n in range(MAX_EVENTS + 1):
        recorder.stream.push(Emitted(1, n))
    assert recorder.stream.congested


def test_log_lines_give_way_to_their_count_when_nobody_reads_but_results_never_do(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for n in range(MAX_EVENTS + 10):
        recorder.stream.push(Log(1, 0.0, "info", str(n)))
    recorder.stream.push(State(1, "waits"))
    recorder.stream.push(Result(1, "value"))
    recorder.stream.end()
    assert not recorder.ended
    recorder.stream.grant(10_000)
    assert recorder.events[-2].fields == {"lines": 10}
    assert len(recorder.events) == MAX_EVENTS + 2
    assert recorder.events[-1] == Result(1, "value")
    assert recorder.ended


def test_close_releases_waiters_and_drops_what_waits(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for n in range(MAX_EVENTS):
        recorder.stream.push(Emitted(1, n))
    relieved = []
    recorder.stream.when_drained(lambda: relieved.append(1))
    recorder.stream.close()
    assert relieved == [1]
    assert not recorder.stream.congested
    recorder.stream.push(Emitted(1, 0))
    recorder.stream.grant(5)
    recorder.stream.end()
    assert recorder.events == []
    assert not recorder.ended


def test_a_relief_that_makes_the_stream_congested_again_waits_again(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    calls = []

    def refill() -> None:
        calls.append(1)
        for n in range(MAX_EVENTS):
            recorder.stream.push(Emitted(1, n))
        recorder.stream.when_drained(refill)

    refill()
    recorder.stream.grant(MAX_EVENTS)
    assert calls == [1, 1]
    assert recorder.stream.congested


@pytest.fixture
def make_recorder() -> Any:
    """Makes recorders without a kernel."""
    return Recorder


@pytest.mark.parametrize("large", ["x" * 10_000, bytes(10_000), msgspec.Raw(bytes(10_000))])
def test_a_reader_with_few_but_large_emitted_values_is_behind(make_recorder: Any, large: object) -> None:
    recorder = make_recorder(credit=0)
    few = -(-MAX_EMITTED // 10_000)
    assert few < MAX_EVENTS
    for _ in range(few - 1):
        recorder.stream.push(Emitted(1, large))
    assert not recorder.stream.congested
    recorder.stream.push(Emitted(1, large))
    assert recorder.stream.congested
    recorder.stream.grant(1)
    assert not recorder.stream.congested
    recorder.stream.close()
    assert not recorder.stream.congested
