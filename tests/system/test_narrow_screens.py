"""The listings of the real command on a terminal of 80 cells, on narrower ones, and in a pipe."""

from __future__ import annotations

import json

import pytest

from llmosd.cli.table import cells
from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.terminal import on_terminal

NOTE = "--wide shows all"


def shown(daemon: RunningDaemon, *command: str, width: int = 80, **environment: str) -> list[str]:
    """The lines that a command prints on a terminal, without the note about hidden columns."""
    whole = [SCRIPTS / "llmos", "--socket", daemon.socket, *command]
    screen = on_terminal(whole, {"TERM": "dumb"} | environment, columns=width)
    assert screen.returncode == 0, screen.text
    return [line for line in screen.text.splitlines() if NOTE not in line]


def test_listings_fit_a_terminal_and_are_whole_in_a_pipe(daemon: RunningDaemon) -> None:
    question = "What is the capital of a country with a long name?"
    with daemon.client() as client:
        done = client.submit("echo", {"value": question}, detach=True)
        assert done.result(60) == question
        waiting = client.submit("ask", {"question": question, "max_tokens": 8000}, detach=True, owner="a long name")
        client.suspend(waiting.pid)  # so that it stays
        for width in (80, 30):
            for command in ("ps", "history", "slots", "programs", "models", "tools", "stats", "tree"):
                lines = shown(daemon, command, width=width)
                most = max(width, 26 if command in {"history", "stats"} else 0)  # their keys are never cut
                assert [line for line in lines if cells(line) > most] == []
            (row,) = [line for line in shown(daemon, "history", width=width) if line.startswith(done.id)]
            assert row.split()[:2] == [done.id, str(done.pid)]
            assert str(waiting.pid) in {line.split()[0] for line in shown(daemon, "ps", width=width)[1:]}

        head, *lines = shown(daemon, "history")
        assert head.split()[:3] == ["ID", "PID", "PROGRAM"]
        assert {"STATE", "ARGUMENTS", "RESULT"} <= set(head.split())
        assert any('value="' in line and "…" in line for line in lines)
        assert shown(daemon, "history", COLUMNS="200")[0].split() == shown(daemon, "history", width=200)[0].split()

        piped = daemon.llmos("history").stdout
        assert shown(daemon, "history", "--wide") == piped.splitlines()
        assert f'value="{question}"' in piped
        (row_of_json,) = [row for row in json.loads(daemon.llmos("history", "--json").stdout) if row["id"] == done.id]
        assert (row_of_json["last_pid"], row_of_json["arguments"], row_of_json["result"]) == (
            done.pid,
            f'value="{question}"',
            question,
        )
        waiting.cancel()


@pytest.mark.parametrize("command", ["run", "logs", "ping"])
def test_only_commands_that_print_a_table_have_the_option(daemon: RunningDaemon, command: str) -> None:
    assert "--wide" not in daemon.llmos(command, "--help").stdout
    assert "--wide" in daemon.llmos("mailbox", "--help").stdout
