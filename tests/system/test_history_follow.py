"""`llmos history --follow`: a line for each new task and each end, until Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess

from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.terminal import Typist


def test_tasks_and_ends_appear_as_lines_of_json(daemon: RunningDaemon) -> None:
    command = [SCRIPTS / "llmos", "--socket", daemon.socket, "history", "--follow", "--json", "--limit", "1"]
    with daemon.client() as client:
        client.run("echo", {"value": "first"})
        last = client.submit("echo", {"value": "last"}, detach=True)
        assert last.result(60) == "last"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            lines = (json.loads(line) for line in follower.stdout)
            assert next(lines)["id"] == last.id  # from here on, it follows
            running = client.submit("ask", {"question": "Why?", "max_tokens": 8000}, detach=True)
            row = next(lines)
            assert (row["id"], row["pid"], row["ended"]) == (running.id, running.pid, 0)
            running.cancel()
            row = next(lines)
            assert (row["id"], row["state"], row["last_pid"]) == (running.id, "killed", running.pid)
            follower.send_signal(signal.SIGINT)
            assert (list(lines), follower.wait(60)) == ([], 130)


def test_lines_on_a_terminal_fit_it_and_have_the_call_and_its_result(daemon: RunningDaemon) -> None:
    command = [SCRIPTS / "llmos", "--socket", daemon.socket, "history", "-f"]
    with daemon.client() as client, Typist(command, {"COLUMNS": ""}) as user:
        for text in ('["the cat", "b"]', "a text that is much too long for a line of eighty cells " * 2):
            task = client.submit("echo", {"value": text}, detach=True)
            assert task.result(60) == text
            user.see(task.id)
            line = user.see("\n")
            assert f" {task.pid}  done in " in line
            assert "\\" not in line
            assert len(task.id + line.rstrip()) + len("12:00:00  ") <= 80
        user.interrupt()
        assert user.end() == 130


def test_options_that_do_not_go_with_it_are_misuse(daemon: RunningDaemon) -> None:
    for option in (["--before", "1a"], ["--limit", "-1"]):
        refused = daemon.llmos("history", "--follow", *option)
        assert (refused.returncode, refused.stdout, option[0] in refused.stderr) == (2, "", True)
