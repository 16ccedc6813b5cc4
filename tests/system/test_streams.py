"""The output of commands in a pipe, on a terminal, and on streams that are full, closed, ASCII or not text."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import SCRIPTS, START_TIMEOUT, RunningDaemon, eventually
from tests.support.simulated import text_of
from tests.support.terminal import Screen, on_terminal

AGENTS = r"""
import asyncio
from typing import Any
from llmosd import Context, agent

@agent
async def two(ctx: Context) -> str:
    await ctx.generate("first", max_tokens=8, seed=1)
    return await ctx.generate("second", max_tokens=8, seed=2)

@agent
async def together(ctx: Context) -> int:
    await asyncio.gather(*(ctx.generate("one of many", max_tokens=40, seed=seed) for seed in (1, 2, 3)))
    return 7

@agent
async def child(ctx: Context, seed: int) -> str:
    await ctx.emit({"seed": seed})
    return await ctx.generate("child", max_tokens=8, seed=seed)

@agent
async def family(ctx: Context) -> dict[Any, Any]:
    await ctx.generate("parent", max_tokens=8, seed=1)
    pids = [await ctx.spawn("child", {"seed": seed}) for seed in (2, 3)]
    texts = [await ctx.wait(pid) for pid in pids]
    return {"words": [len(text.split()) for text in texts], "score": float("nan"), 5: b"\x00\xff"}

@agent
async def nothing(ctx: Context) -> None:
    await ctx.generate("nothing", max_tokens=8, seed=1)

@agent
async def hostile(ctx: Context, how: str) -> Any:
    text = "\x1b[2J\x1b]52;c;aGk=\x07 \x9b31m \u202egnp \r over"
    if how == "emit":
        await ctx.emit(text)
    elif how == "log":
        ctx.log(text, **{text: text})
    elif how == "error":
        raise ValueError(text)
    elif how == "json":
        return {text: text}
    return text

@agent
async def server(ctx: Context) -> None:
    while (message := await ctx.receive()).body != "stop":
        await ctx.reply(message, message.body and {"reply": float(message.body)})

@agent
async def sleeper(ctx: Context) -> None:
    pid = await ctx.spawn("nap")
    await ctx.wait(pid)

@agent
async def nap(ctx: Context) -> None:
    await ctx.sleep(3600)
"""
HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07 \x9b31m \u202egnp \r over"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """One daemon for all tests, because they leave nothing running. Its model is loaded: no status line appears."""
    with tempfile.TemporaryDirectory(prefix="llmosd-test-") as name:  # a short path, for the socket
        folder = Path(name)
        (folder / "agents").mkdir()
        (folder / "agents" / "some.py").write_text(AGENTS)
        daemon = RunningDaemon(folder, "--model", "simulated", "--agents", str(folder / "agents"))
        try:
            daemon.wait_until_ready()
            assert daemon.llmos("run", "nothing").returncode == 0
            yield daemon
        finally:
            daemon.stop()


@pytest.fixture
def terminal(daemon: RunningDaemon) -> Callable[..., Screen]:
    """Runs `llmos` on a terminal."""

    def terminal(*arguments: str, environment: dict[str, str] | None = None) -> Screen:
        given = {"LLMOSD_SOCKET": str(daemon.socket)} | (environment or {})
        return on_terminal([SCRIPTS / "llmos", *arguments], given)

    return terminal


def generated(seed: int, tokens: int = 8) -> str:
    return text_of(seed, tokens).strip()


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_in_a_pipe_standard_output_is_the_result_alone_and_once(daemon: RunningDaemon) -> None:
    assert daemon.llmos("run", "two").stdout.strip() == generated(2)
    assert daemon.llmos("run", "together").stdout == "7\n"
    assert daemon.llmos("run", "nothing").stdout == ""
    family = daemon.llmos("run", "family").stdout
    assert family.count("\n") == 1
    assert json.loads(family) == {"words": [8, 8], "score": "NaN", "5": "AP8="}
    for arguments in (("run", "family", "--json"), ("run", "nothing", "--json")):
        document = daemon.llmos(*arguments).stdout
        assert document.count("\n") == 1
        assert json.loads(document)["result"] in ({"words": [8, 8], "score": "NaN", "5": "AP8="}, None)


def test_on_a_terminal_the_calls_of_the_own_process_are_shown_apart(terminal: Callable[..., Screen]) -> None:
    assert lines(terminal("run", "two").text) == [generated(1), "", generated(2)]
    together = lines(terminal("run", "together").text)
    assert sorted(together) == sorted(["", "", "", "7", *(generated(seed, 40) for seed in (1, 2, 3))])
    assert together[-1] == "7"
    family = lines(terminal("run", "family").text)
    assert family == [generated(1), "", '{"words":[8,8],"score":"NaN","5":"AP8="}']
    assert terminal("run", "nothing", "--no-stream").text == ""
    assert lines(terminal("run", "two", "--no-stream").text) == [generated(2)]


def test_streaming_is_forced_and_children_are_labelled(daemon: RunningDaemon) -> None:
    assert lines(daemon.llmos("run", "two", "--stream").stdout) == [generated(1), "", generated(2)]
    shown = daemon.llmos("run", "family", "--children")
    assert shown.returncode == 0, shown.stderr
    labelled = sorted(line.partition("] ")[2] for line in lines(shown.stdout) if line.startswith("[child "))
    assert labelled == sorted([generated(2), generated(3), '{"seed":2}', '{"seed":3}'])
    assert daemon.llmos("run", "two", "--no-stream").stdout.strip() == generated(2)


def test_attach_wait_and_call_print_results_by_the_same_rule(daemon: RunningDaemon) -> None:
    task = json.loads(daemon.llmos("run", "-d", "--json", "family").stdout)
    document = '{"words":[8,8],"score":"NaN","5":"AP8="}\n'
    assert daemon.llmos("attach", task["id"]).stdout == document
    with daemon.client() as client:
        server = client.submit("server")
        assert daemon.llmos("call", str(server.pid), '"inf"').stdout == '{"reply":"Infinity"}\n'
        assert daemon.llmos("call", str(server.pid)).stdout == ""
        assert daemon.llmos("call", str(server.pid), "--json").stdout == "null\n"
        client.send(server.pid, "stop")
        assert server.result() is None
    waited = daemon.llmos("wait", str(server.pid))
    assert (waited.returncode, waited.stdout) == (0, ""), waited.stderr


@pytest.mark.parametrize("how", ["result", "emit", "log", "error", "json"])
def test_no_control_character_of_an_agent_reaches_the_terminal(terminal: Callable[..., Screen], how: str) -> None:
    shown = terminal("run", "hostile", how).text
    assert {character for character in shown if not character.isprintable()} == {"\n"}
    assert "\\u001b[2J" in shown if how == "json" else "\\x1b[2J" in shown
    if how == "json":
        assert json.loads(shown) == {HOSTILE: HOSTILE}


def test_the_result_in_a_pipe_is_intact(daemon: RunningDaemon) -> None:
    command = f"{SCRIPTS}/llmos run hostile result"
    environment = os.environ | {"LLMOSD_SOCKET": str(daemon.socket)}
    out = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=True)
    assert out.stdout == f"{HOSTILE}\n".encode()


def test_lists_on_a_terminal_contain_only_our_own_control_characters(
    terminal: Callable[..., Screen], daemon: RunningDaemon
) -> None:
    with daemon.client() as client:
        task = client.submit("nap")
        client.send(task.pid, "x", type=HOSTILE)
        for command in (("mailbox", str(task.pid)), ("run", "ask", "x", "-a", f"{HOSTILE}=1"), ("attach", HOSTILE)):
            shown = terminal(*command).text
            assert "\\x1b[2J" in shown, command
            assert not {"\x07", "\x9b", "\u202e", "\r"} & set(shown), command
            assert not any(sequence in shown for sequence in ("\x1b]", "\x1b[2J")), command
        task.cancel()


def test_a_terminal_that_knows_only_ascii_shows_everything(
    terminal: Callable[..., Screen], daemon: RunningDaemon
) -> None:
    with daemon.client() as client:
        task = client.submit("sleeper")
        eventually(lambda: len(client.ps()) == 2, "the child runs")
        for environment in (ASCII, {"PYTHONIOENCODING": "ascii"}):
            tree = terminal("tree", environment=environment | {"COLUMNS": "200"})
            assert (tree.returncode, "`- nap" in tree.text) == (0, True), tree.text
        task.cancel()
    echo = terminal("run", "echo", "\N{SNOWMAN}", environment={"PYTHONIOENCODING": "ascii"})
    assert (echo.returncode, echo.text) == (0, "\\u2603\n")
    document = terminal("run", "echo", "\N{SNOWMAN}", "--json", environment={"PYTHONIOENCODING": "ascii"}).text
    assert json.loads(document)["result"] == "\N{SNOWMAN}"


def shell(daemon: RunningDaemon, command: str) -> tuple[int, str, str]:
    """Run a line of shell in which `llmos` is ours; return its exit code, its output, and its errors."""
    environment = os.environ | {"LLMOSD_SOCKET": str(daemon.socket), "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    out = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=60, check=False)
    errors = out.stderr.decode()
    assert "Traceback" not in errors, f"{command}:\n{errors}"
    return out.returncode, out.stdout.decode(), errors


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("llmos ps >/dev/full", 1, "llmos: cannot write the output: No space left on device\n"),
        ("llmos programs --json >/dev/full", 1, "llmos: cannot write the output: No space left on device\n"),
        ("llmos --help >/dev/full", 1, "llmos: cannot write the output: No space left on device\n"),
        ("llmos ps >&-", 1, "llmos: cannot write the output: Bad file descriptor\n"),
        ("llmos ping 2>/dev/full >/dev/null", 0, ""),
        ("llmos nonsense 2>/dev/full", 2, ""),
        ("llmos ping <&- >&- 2>&-", 1, ""),
        ("llmos ping <&- 2>&- >/dev/null", 0, ""),
        ("llmos kill 99999 <&- >&-", 2, "99999"),
        ("llmos run echo - <&-", 2, "cannot read standard input: Bad file descriptor\n"),
        (
            "printf '\\xff' | llmos run echo -",
            2,
            "argument value: expected JSON or any other text; got bytes that are not UTF-8 text",
        ),
        ("printf '\\xff' | llmos send 1 -", 2, "the body is not UTF-8 text"),
        ("llmos run echo $'\\xff'", 2, "argument value: expected JSON or any other text; got bytes that"),
        ("llmos run echo x --owner $'\\xff'", 2, "the argument \\xff is not UTF-8 text\n"),
        ("llmos call 1 $'\\xff'", 2, "the body is not UTF-8 text"),
        ("llmos run ./$'\\xff'.py", 2, "the argument ./\\xff.py is not UTF-8 text\n"),
        ("llmos --socket ./$'\\xff' ps", 3, "no daemon at \\udcff"),
        ("llmos run '~nobody!/x.py'", 2, "no file "),
        ("llmos chat '~nobody!/x.py'", 2, "no file "),
        ('cd "$(mktemp -d)"; rmdir "$PWD"; llmos run ./x.py', 2, "cannot find ./x.py from the working folder"),
        ('cd "$(mktemp -d)"; rmdir "$PWD"; llmos backup x', 2, "cannot find x from the working folder"),
        ("llmos simulate --workload '~nobody!/x.csv'", 2, "no workload '~nobody!/x.csv', and no such file"),
        ("llmos simulate --device '~nobody!/x'", 2, "no device '~nobody!/x'"),
        ("llmos record '~nobody!/x'", 2, "~nobody!/x: No such file or directory"),
        ("llmosd --config '~nobody!/x'", 2, "~nobody!/x: No such file or directory"),
        ("llmosd --model '~nobody!/x'", 2, "~nobody!/x"),
        ("llmos top </dev/null", 2, "needs a terminal"),
        ("llmosd --version >/dev/full", 1, "llmosd: cannot write the output: No space left on device\n"),
        ("LLMOSD_LOG_LEVEL=$'\\xff' llmosd", 2, "environment variable LLMOSD_LOG_LEVEL: '\\udcff' is not UTF-8 text\n"),
        ("llmosd --state $'/tmp/\\xff'", 2, "state: the path '/tmp/\\udcff' is not UTF-8; choose another\n"),
        ("llmosd --config <(printf '\"\\\\u001b[2J\" = 1')", 2, "\\x1b[2J"),
    ],
)
def test_streams_and_arguments_that_are_broken_make_a_sentence(
    daemon: RunningDaemon, command: str, code: int, sentence: str
) -> None:
    returned, _, errors = shell(daemon, command)
    assert (returned, sentence in errors if sentence else errors) == (code, True if sentence else "")


@pytest.mark.parametrize(
    "streams", [">/dev/full 2>/dev/full", "<&- >&- 2>&-", "2>/dev/full --log-format human --log-level debug"]
)
def test_a_daemon_whose_output_fails_works(daemon: RunningDaemon, folder: Path, streams: str) -> None:
    socket = folder / "llmosd.sock"
    agents = f"--agents {daemon.folder}/agents"
    command = f"exec {SCRIPTS}/llmosd --model simulated --socket {socket} --state {folder}/state {agents} {streams}"
    with subprocess.Popen(["bash", "-c", command]) as process:
        try:
            eventually(socket.exists, "the daemon listens", START_TIMEOUT)
            assert daemon.llmos("--socket", str(socket), "run", "hostile", "error").returncode == 1
            shown = daemon.llmos("--socket", str(socket), "run", "two")
            assert shown.stdout.strip() == generated(2), shown.stderr
            assert daemon.llmos("--socket", str(socket), "shutdown").returncode == 0
            assert process.wait(60) == 0
        finally:
            process.kill()
