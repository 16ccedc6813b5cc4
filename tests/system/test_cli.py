"""The `llmos` command against a real daemon: output, JSON, exit codes, streaming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.daemon import SCRIPTS


def test_run_prints_the_answer_once(daemon):
    out = daemon.llmos("run", "ask", "hi", "-a", "max_tokens=5", "-a", "seed=1")
    assert out.returncode == 0
    assert out.stdout.count("s") == 5
    assert out.stdout.endswith("\n")


def test_run_streams_tokens_as_they_come(daemon, eventually):
    command = [SCRIPTS / "llmos", "run", "ask", "long", "-a", "max_tokens=8000", "--stream"]
    environment = os.environ | {"LLMOSD_SOCKET": str(daemon.socket)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout.read(20)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    with daemon.client() as client:
        eventually(lambda: not client.ps(), "the task ends with its client")


def test_run_reads_standard_input_and_prints_values_as_json(daemon):
    assert daemon.llmos("run", "echo", "-", stdin="piped text").stdout == "piped text\n"
    assert daemon.llmos("run", "echo", "x", "--json").stdout.startswith('{"pid":')


def test_a_program_by_path(daemon, folder):
    path = folder / "mine.py"
    path.write_text("from llmosd import agent\n\n@agent\nasync def mine(ctx, number: int):\n    return number + 1\n")
    assert daemon.llmos("run", str(path), "41").stdout == "42\n"
    path.write_text("from llmosd import agent\n\n@agent\nasync def mine(ctx, number: int):\n    return number + 2\n")
    os.utime(path, (time.time(), time.time() + 5))
    assert daemon.llmos("run", f"{path}:mine", "41").stdout == "43\n"


@pytest.mark.parametrize("command", ["ps", "slots", "policy", "models", "programs", "stats", "ping"])
def test_lists_have_a_table_and_json(daemon, command):
    assert daemon.llmos(command).returncode == 0
    assert json.loads(daemon.llmos(command, "--json").stdout) is not None


def test_the_policy_of_a_model_is_shown_and_changed(daemon):
    out = daemon.llmos("policy", "simulated", "fair", "--quantum", "8", "--weight", "ann=2", "--json")
    (row,) = json.loads(out.stdout)
    assert (row["kind"], row["quantum"], row["weights"]) == ("fair", 8, {"ann": 2.0})
    assert "fair" in daemon.llmos("policy", "simulated").stdout
    wrong = daemon.llmos("policy", "simulated", "lottery")
    assert (wrong.returncode, "the policies are: fifo" in wrong.stderr) == (2, True)
    assert daemon.llmos("policy", "simulated", "--weight", "ann").returncode == 2
    with daemon.client() as client:
        assert client.policy("simulated").kind == "fair"
        assert client.policy("simulated", "priority", quantum=32, weights={"ann": 1.0}).quantum == 32


def test_ps_logs_wait_and_kill(daemon, folder):
    path = folder / "slow.py"
    path.write_text(
        "from llmosd import agent\n\n@agent\nasync def slow(ctx, seconds: float):\n"
        "    ctx.log('begun', seconds=seconds)\n    await ctx.sleep(seconds)\n    return 'slept'\n"
    )
    _, pid = daemon.llmos("run", "-d", str(path), "3600").stdout.split()
    rows = json.loads(daemon.llmos("ps", "--json").stdout)
    assert [(row["pid"], row["program"], row["waits_for"]) for row in rows] == [(int(pid), "slow", "time")]
    assert "begun seconds=3600.0" in daemon.llmos("logs", pid).stdout
    assert daemon.llmos("wait", pid, "--timeout", "0.1").returncode == 124
    assert daemon.llmos("suspend", pid).returncode == 0
    assert "suspended" in daemon.llmos("ps").stdout
    assert daemon.llmos("resume", pid).returncode == 0
    assert daemon.llmos("kill", pid).returncode == 0
    killed = daemon.llmos("wait", pid)
    assert (killed.returncode, "Killed" in killed.stderr) == (1, True)
    _, short = daemon.llmos("run", "-d", str(path), "0.2").stdout.split()
    assert daemon.llmos("wait", short).stdout == "slept\n"
    _, brief = daemon.llmos("run", "-d", str(path), "0.5").stdout.split()
    follow = daemon.llmos("logs", "-f", brief)
    assert "begun" in follow.stdout


def test_exit_codes(daemon, folder):
    path = folder / "bad.py"
    path.write_text("from llmosd import agent\n\n@agent\nasync def bad(ctx):\n    raise RuntimeError('no luck')\n")
    failed = daemon.llmos("run", str(path))
    assert (failed.returncode, "no luck" in failed.stderr) == (1, True)
    assert daemon.llmos("run", "nothing").returncode == 2
    assert daemon.llmos("kill", "99999").returncode == 2
    assert daemon.llmos("nonsense").returncode == 2
    late = daemon.llmos("run", "ask", "q", "-a", "max_tokens=8000", "--timeout", "0.1")
    assert late.returncode == 124
    assert "the task ends" in late.stderr
    assert daemon.llmos("ps", "--socket", str(folder / "none.sock")).returncode == 3


def test_shutdown_returns_when_the_daemon_has_gone(daemon):
    assert daemon.llmos("shutdown").returncode == 0
    assert daemon.process.wait(60) == 0


def test_completion_scripts(daemon):
    for shell in ("bash", "zsh"):
        assert "programs" in daemon.llmos("completion", shell).stdout


def test_a_reader_that_goes_away_is_no_error(daemon, folder):
    environment = os.environ | {"LLMOSD_SOCKET": str(daemon.socket)}
    for command in ("run ask q -a max_tokens=500 --stream", "programs", "programs --json", "completion bash"):
        pipe = f"{SCRIPTS}/llmos {command} 2>{folder}/errors | head -c 10; exit ${{PIPESTATUS[0]}}"
        out = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=environment, check=False)
        assert (out.returncode, len(out.stdout)) == (0, 10)
        assert "llmos:" not in (folder / "errors").read_text()
        assert "Traceback" not in (folder / "errors").read_text()
