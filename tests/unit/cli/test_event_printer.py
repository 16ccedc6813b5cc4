"""The output of `llmos run` and `llmos attach`: the result once, the text call by call, children on request."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest

from ipc.errors import AgentFailed, UnknownProcess, to_wire
from ipc.messages import Emitted, Event, Failed, Log, Missed, Restarted, Result, State, Token
from ipc.syscalls import ExitStatus, Wait
from llmosd.cli import task_text
from llmosd.cli.stream import EventPrinter, Labels
from llmosd.cli.task_text import LineOutput, TaskText
from llmosd.standard_streams import EscapedText

OWN, CHILD = 10, 11


class Processes:
    """Answers questions about processes as a client would, and counts those about living ones."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        self.ended: dict[int, str] = {}
        self.questions = 0

    def ps(self, *, start: int, limit: int) -> list[Any]:
        self.questions += 1
        if not self.names:
            raise UnknownProcess("gone")
        return [type("Row", (), {"pid": pid, "program": self.names[pid]}) for pid in sorted(self.names) if pid >= start]

    def request(self, call: Wait) -> ExitStatus:
        if call.pid not in self.ended:
            raise UnknownProcess("gone")
        return ExitStatus(call.pid, self.ended[call.pid], "done")


class Printed:
    """Prints events, and returns what is on standard output and on standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.processes = Processes({OWN: "family", CHILD: "kid"})

    def __call__(self, *events: Event, stream: bool = True, children: bool = False, own: int = OWN) -> str:
        labels = Labels(self.processes, own)  # type: ignore[arg-type]
        EventPrinter(labels, stream=stream, children=children).print(events)
        captured = self._capsys.readouterr()
        self.errors = captured.err
        return captured.out


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


def said(*tokens: str, call: int = 1, pid: int = OWN) -> list[Token]:
    return [Token(token, pid, call) for token in tokens]


def test_without_streaming_the_result_is_alone_and_once(printed: Printed) -> None:
    events = [*said("one ", "two"), *said("child", pid=CHILD), Emitted(OWN, 1), *said("three", call=2)]
    assert printed(*events, Result(OWN, "one two"), stream=False) == "one two\n"
    assert printed(*events, Result(OWN, ["a"]), stream=False) == '["a"]\n'
    assert printed(*events, Result(OWN, math.nan), stream=False) == '"NaN"\n'
    assert printed(*events, Result(OWN, None), stream=False) == ""
    assert printed(*events, Result(OWN, ""), stream=False) == "\n"


def test_the_calls_of_a_process_are_separated_by_an_empty_line(printed: Printed) -> None:
    events = [*said("one ", "two"), *said("three\n", call=2), *said("four", *[" x"] * 4, call=3), Result(OWN, None)]
    assert printed(*events) == "one two\n\nthree\n\nfour x x x x\n"


def test_calls_at_the_same_time_are_not_mixed(printed: Printed) -> None:
    turns = [token for number in range(3) for call in (1, 2, 3) for token in said(f"{call}.{number} ", call=call)]
    assert printed(*turns, Result(OWN, None)) == "1.0 1.1 1.2 \n\n2.0 2.1 2.2 \n\n3.0 3.1 3.2 \n"


@pytest.mark.parametrize("result", ["three", "three\n", " three", "one twothree"])
def test_a_result_that_the_text_has_shown_is_not_printed_again(printed: Printed, result: str) -> None:
    assert printed(*said("one ", "two"), *said("three", call=2), Result(OWN, result)) == "one two\n\nthree\n"


def test_a_typed_result_that_the_text_has_shown_is_not_printed_again(printed: Printed) -> None:
    assert printed(*said('{"a": ', "[1, 2]}"), Result(OWN, {"a": [1, 2]})) == '{"a": [1, 2]}\n'
    assert printed(*said('{"a": ', "[1, 2"), Result(OWN, {"a": 1})) == '{"a": [1, 2\n\n{"a":1}\n'


def test_another_result_follows_after_an_empty_line(printed: Printed) -> None:
    assert printed(*said("one"), *said("two", call=2), Result(OWN, "one")) == "one\n\ntwo\n\none\n"
    assert printed(*said("one\n"), Result(OWN, 1)) == "one\n\n1\n"


def test_emitted_values_have_lines_of_their_own(printed: Printed) -> None:
    events = [*said("one "), Emitted(OWN, {"n": 1}), *said("two"), Result(OWN, "one two")]
    assert printed(*events) == 'one \n{"n":1}\ntwo\n'
    assert printed(Emitted(OWN, "a"), Emitted(OWN, None), Result(OWN, "done")) == "a\nnull\ndone\n"
    assert printed(*said("one"), Emitted(OWN, 1), *said("two", *"xyz", call=2), Result(OWN, 1)) == (
        "one\n1\n\ntwoxyz\n\n1\n"
    )


def test_children_appear_only_on_request_and_with_their_names(printed: Printed) -> None:
    events = [*said("own"), Emitted(CHILD, "a"), *said("one ", "two ", "three", pid=CHILD), Result(OWN, "own")]
    assert printed(*events) == "own\n"
    assert printed.processes.questions == 0
    assert printed(*events, children=True) == "own\n[kid 11] a\n\n[kid 11] one two three\n"
    assert printed.processes.questions == 1
    assert printed(*events, children=True, stream=False) == "own\n"


def test_a_child_that_has_ended_is_labelled_as_long_as_the_daemon_knows_it(printed: Printed) -> None:
    printed.processes.names, printed.processes.ended = {12: "other"}, {CHILD: "short"}
    assert printed(*said("a", pid=CHILD), Result(OWN, None), children=True) == "[short 11] a\n"


def test_a_child_that_the_daemon_has_forgotten_is_labelled_by_its_number(printed: Printed) -> None:
    printed.processes.names = {12: "other"}
    assert printed(*said("a", pid=CHILD), Result(OWN, None), children=True) == "[process 11] a\n"
    printed.processes.names = {}
    assert printed(*said("a", pid=CHILD), Result(OWN, None), children=True) == "[process 11] a\n"


def test_the_text_of_a_child_is_not_taken_for_the_result(printed: Printed) -> None:
    events = [*said("own"), *said("one", pid=CHILD), Result(OWN, "one")]
    assert printed(*events, children=True) == "own\n\n[kid 11] one\n\none\n"


def test_the_program_of_a_child_cannot_break_the_line(printed: Printed) -> None:
    printed.processes.names = {CHILD: "\x1b[2J\n"}
    assert printed(*said("a", pid=CHILD), Result(OWN, None), children=True) == "[\\x1b[2J\\n 11] a\n"


def test_logs_and_notes_go_to_standard_error(printed: Printed) -> None:
    log = Log(OWN, 0.0, "info", "begun", {"n": 1})
    assert printed(log, Missed(OWN, 7), Restarted(OWN, 2), Result(OWN, "done"), stream=False) == "done\n"
    assert "[10] info: begun n=1" in printed.errors
    assert "7 earlier events are missing" in printed.errors
    assert "attempt 2" in printed.errors


def test_an_error_is_raised_after_the_text_and_its_line_is_ended(
    printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AgentFailed, match="no luck"):
        printed(*said("one "), *said("held", call=2), Failed(OWN, to_wire(AgentFailed("no luck"))))
    assert capsys.readouterr().out == "one \n\nheld\n"


def test_an_interrupted_text_ends_its_line(printed: Printed, capsys: pytest.CaptureFixture[str]) -> None:
    def events() -> Any:
        yield from said("one ")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventPrinter(Labels(printed.processes, OWN), stream=True, children=False).print(events())  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one \n"


def test_an_endless_text_is_not_remembered_as_a_whole(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_text, "MOST_REMEMBERED", 100)
    text = TaskText(LineOutput(), lambda pid: "")
    for number in range(1000):
        text.token(Token("word ", OWN, number // 100))
    assert sum(map(len, text._written)) <= 100
    assert len(text._own) + len(text._last) + len(text._written) <= 100
    text.finish()
    assert text
    assert text.shows("word " * 5) is False


# ---- terminals


class Terminal(EscapedText):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Prints events, and texts as notes, with both streams on one terminal. Returns what the terminal gets."""

    def screen(*events: Event | str) -> str:
        data = io.BytesIO()
        terminal = Terminal(data, "utf-8", write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            patch.setattr("sys.stderr", terminal)
            printer = EventPrinter(Labels(Processes({}), OWN), stream=True, children=False)  # type: ignore[arg-type]
            printer.print(event for event in events if not isinstance(event, str) or printer.note(event))  # type: ignore[misc]
            return data.getvalue().decode()

    return screen


def test_a_status_line_is_one_line_without_foreign_control_characters(screen: Callable[..., str]) -> None:
    loading = State(OWN, "model \x1b[2J loading", "reading\n" + "x" * 200)
    shown = screen(loading, State(OWN, "model ready", ""), *said("one"), Result(OWN, "one"))
    status, *ready, text = shown.split("\r\x1b[K")[1:]
    assert status.startswith("model \\x1b[2J loading: reading\\nxxx")
    assert len(status) == 79
    assert (ready, text) == ([], "one\n")


def test_nothing_else_is_written_into_an_open_line_of_text(screen: Callable[..., str]) -> None:
    log = Log(OWN, 0.0, "info", "begun", {})
    shown = screen(*said("one "), State(OWN, "model queued", "second"), log, *said("two"), Result(OWN, "one two"))
    first, logged, last = shown.splitlines()
    assert (first, logged[-12:], last) == ("one ", " info: begun", "two")


def test_a_note_has_a_line_of_its_own(screen: Callable[..., str]) -> None:
    assert screen(*said("one "), "lost", *said("two"), Result(OWN, "one two")) == "one \nllmos: lost\ntwo\n"
    loading = State(OWN, "model loading", "reading")
    assert "reading\r\x1b[Kllmos: lost\n" in screen(loading, "lost", Result(OWN, None))


# ---- restarts


@pytest.mark.parametrize(
    ("second", "out"),
    [
        (("one ", "two ", "three"), "one two three\n"),
        (("one two three",), "one two three\n"),
        (("on", "e tw", "o "), "one two \n"),
        (("one ", "other"), "one two \none other\n"),
        (("one ",), "one two \none \n"),
        ((), "one two \n"),
    ],
)
def test_text_that_differs_after_a_restart_is_printed_again_and_repeated_text_is_not(
    printed: Printed, second: tuple[str, ...], out: str
) -> None:
    first = [*said("one ", "two "), Restarted(OWN, 2)]
    assert printed(*first, *said(*second), Result(OWN, "".join(second))) == out


def test_a_restarted_task_has_another_pid_and_may_repeat_several_calls(printed: Printed) -> None:
    first = [*said("one"), *said("two", "+", "+", call=2), Restarted(20, 2)]
    again = [*said("one", pid=20), *said("two", "+", "+", "+", call=2, pid=20)]
    assert printed(*first, *again, Result(20, "two+++")) == "one\n\ntwo+++\n"


def test_a_task_that_restarts_twice_repeats_nothing(printed: Printed) -> None:
    attempts = [*said("one "), Restarted(OWN, 2), *said("one "), Restarted(OWN, 3), *said("one ", "two")]
    assert printed(*attempts, Result(OWN, "one two")) == "one two\n"
    assert printed(*said("one "), Restarted(OWN, 2), Restarted(OWN, 3), *said("one "), Result(OWN, None)) == "one \n"


def test_a_task_without_a_process_takes_the_first_pid_that_prints(printed: Printed) -> None:
    assert printed(*said("one"), *said("child", pid=CHILD), Result(OWN, "one"), own=0) == "one\n"


def test_values_are_emitted_again_after_a_restart(printed: Printed) -> None:
    events = [Emitted(OWN, "a value"), Restarted(OWN, 2), Emitted(OWN, "a value"), Result(OWN, "done")]
    assert printed(*events) == "a value\na value\ndone\n"  # and no empty line, because there was no text
