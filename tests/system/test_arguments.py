"""Arguments, names and help at the terminal, against a real daemon: each command failed or misled before."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmosd.cli.command_line import parser
from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.other_programs import need

AGENTS = """
import dataclasses
from typing import Any, TypedDict

from llmosd import Context, agent


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str


@agent(summary="Shows its arguments.")
async def shows(
    ctx: Context, letters: list[str], point: Point = Point(1), *, ids: set[int] = frozenset(), raw: bytes = b"",
    movie: Movie | None = None, pair: tuple[int, str] = (0, ""), counts: dict[str, int] | None = None, text: str = "",
) -> Any:
    '''Shows its arguments.

    All of them.
    '''
    return [letters, point.x, sorted(ids), len(raw), movie, pair, counts, text]


@agent
async def waits(ctx: Context, seconds: float = 3600.0) -> str:
    ctx.log("waiting")
    await ctx.sleep(seconds)
    return "slept"


@agent
async def loops(ctx: Context) -> str:
    while (message := await ctx.receive()).body != "stop":
        await ctx.reply(message, message.body)
    return "stopped"
"""


@pytest.fixture
def daemon(launch: Callable[..., RunningDaemon]) -> RunningDaemon:
    return launch()


def test_arguments_of_all_types_are_given_at_the_terminal(daemon: RunningDaemon, folder: Path) -> None:
    def shown(*arguments: str, stdin: str = "") -> list[object]:
        out = daemon.llmos("run", "shows", *arguments, stdin=stdin)
        assert (out.returncode, out.stderr) == (0, "")
        answer: list[object] = json.loads(out.stdout)
        return answer

    rest = [0, None, [0, ""], None, ""]
    assert shown('["a","b"]') == [["a", "b"], 1, [], *rest]
    assert shown("-a", 'letters=["x"]', "-a", "ids=[2, 1]", "-a", 'point={"x": 5}') == [["x"], 5, [1, 2], *rest]
    named = ["-a", 'movie={"title": "M"}', "-a", 'pair=[1, "a"]', "-a", 'counts={"a": 1}', "-a", "text=[1]"]
    assert shown(*named, "[]", '{"x": 2}') == [[], 2, [], 0, {"title": "M"}, [1, "a"], {"a": 1}, "[1]"]
    (folder / "letters.json").write_text('["from", "a file"]\n')
    (folder / "raw").write_bytes(b"\xff\xfe\x00")
    assert shown(f"@{folder / 'letters.json'}", "-a", f"raw=@{folder / 'raw'}", "-a", "text=@@x") == [
        ["from", "a file"],
        1,
        [],
        3,
        *rest[1:-1],
        "@x",
    ]
    assert shown("-", stdin='["piped"]')[0] == ["piped"]
    out = daemon.llmos("run", "mapreduce", '["a","b"]', "-a", "max_tokens=1")
    assert len(json.loads(out.stdout)["answers"]) == 2


def test_a_refusal_shows_the_accepted_form(daemon: RunningDaemon, folder: Path) -> None:
    out = daemon.llmos("run", "shows", "x y")
    assert out.returncode == 2
    assert 'argument letters: expected a JSON array of strings, such as ["a", "b"]; got x y\n' in out.stderr
    (folder / "raw").write_bytes(b"\xff")
    out = daemon.llmos("run", "shows", "[]", "-a", f"text=@{folder / 'raw'}")
    assert (out.returncode, "expected a text; got bytes that are not UTF-8 text" in out.stderr) == (2, True)
    out = daemon.llmos("run", "shows", "@nowhere.json")
    assert (out.returncode, "cannot read nowhere.json: No such file" in out.stderr) == (2, True)
    out = daemon.llmos("run", "shows", "-", "-a", "text=-")
    assert (out.returncode, "argument text is -, but argument 1 has read standard input" in out.stderr) == (2, True)


def test_any_takes_json_or_text_and_json_forces_json(daemon: RunningDaemon) -> None:
    assert daemon.llmos("run", "echo", '{"a": 1}').stdout == '{"a":1}\n'
    assert daemon.llmos("run", "echo", "{a").stdout == "{a\n"
    assert json.loads(daemon.llmos("run", "echo", '"5"', "--json").stdout)["result"] == "5"
    assert json.loads(daemon.llmos("run", "echo", "a text", "--json").stdout)["result"] == "a text"
    forced = daemon.llmos("run", "shows", "[]", "-a", "text=5", "--json")
    assert (forced.returncode, "argument text: expected a text; got 5" in forced.stderr) == (2, True)
    wrong = daemon.llmos("run", "echo", "[1", "--json")
    assert (wrong.returncode, "argument 1 begins like JSON" in wrong.stderr) == (2, True)


def test_the_help_of_a_program_shows_its_parameters(daemon: RunningDaemon, folder: Path) -> None:
    for program in ("shows", f"{folder / 'agents' / 'some.py'}:shows"):
        out = daemon.llmos("run", program, "--help")
        assert (out.returncode, out.stderr) == (0, "")
        assert f"usage: llmos run [OPTIONS] {program} LETTERS [POINT] [" in " ".join(out.stdout.split())
        assert out.stdout.count("Shows its arguments.") == 1
        assert "All of them." in out.stdout
        assert '  letters  list[str]: a JSON array of strings, such as ["a", "b"]\n' in out.stdout
    assert "temperature  float | None: a number or null" in daemon.llmos("run", "ask", "-h").stdout
    described = json.loads(daemon.llmos("run", "shows", "--json", "--help").stdout)
    assert [one["name"] for one in described["parameters"]][:2] == ["letters", "point"]
    unknown = daemon.llmos("run", "shoes", "--help")
    assert (unknown.returncode, "did you mean shows?" in unknown.stderr) == (2, True)
    without = daemon.llmos("run", "shows", "--help", "--socket", str(folder / "none.sock"))
    assert (without.returncode, without.stdout.startswith("usage: llmos run")) == (3, True)
    assert "that of shows needs a daemon" in without.stderr


def test_commands_about_processes_take_names(daemon: RunningDaemon) -> None:
    pid = daemon.llmos("run", "-d", "waits", "--name", "office:1").stdout.split()[-1]
    with daemon.client() as client:
        assert daemon.llmos("nice", "office:1", "7").stdout == "7\n"
        assert daemon.llmos("nice", "office:1:0", "+1").stdout == "8\n"
        for command in ("threads", "mailbox", "tree", "why"):
            assert daemon.llmos(command, "office:1").returncode == 0
        assert f"no crash report of process {pid} " in daemon.llmos("crashes", "office:1").stderr
        assert "waiting" in daemon.llmos("logs", "office:1").stdout
        assert daemon.llmos("suspend", "office:1").returncode == 0
        assert [row.state for row in client.ps() if row.pid == int(pid)] == ["suspended"]
        assert daemon.llmos("resume", "office:1").returncode == 0
        for command in (["kill", "ofice:1"], ["send", "ofice:1", "x"], ["call", "ofice:1", "x"]):
            mistyped = daemon.llmos(*command)
            assert (mistyped.returncode, "did you mean office:1?" in mistyped.stderr) == (2, True)
        assert daemon.llmos("kill", "office:1").returncode == 0
        assert client.ps() == []
        loop = client.submit("loops", name="loop")
        assert daemon.llmos("call", "loop", "hi").stdout == "hi\n"
        client.send("loop", "stop")
        assert loop.result() == "stopped"


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_and_options(shell: str, folder: Path) -> None:
    need(shell)
    made = subprocess.run([SCRIPTS / "llmos", "completion", shell], capture_output=True, text=True, check=True)
    script = folder / f"llmos.{shell}"
    script.write_text(made.stdout)
    for line, expected in (
        ("llmos resu", "resume"),
        ("llmos run --prio", "--priority"),
        ("llmos completion fi", "fish"),
    ):
        if shell == "fish":
            ask = f"source {script}; complete -C '{line}'"
        else:
            words = line.split()
            ask = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            ask += f"_shtab_llmos llmos {words[-1]} {words[-2]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        out = subprocess.run([shell, "-c", ask], capture_output=True, text=True, env=environment, check=False)
        assert [one.split("\t")[0].strip() for one in out.stdout.splitlines()] == [expected], out.stderr


def test_the_fish_script_names_every_command() -> None:
    out = subprocess.run([SCRIPTS / "llmos", "completion", "fish"], capture_output=True, text=True, check=True)
    commands = parser().commands
    assert commands is not None
    assert [name for name in commands.choices or () if f" {name}" not in out.stdout] == []
