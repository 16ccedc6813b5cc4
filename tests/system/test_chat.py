"""`llmos chat`, typed at a terminal and fed through a pipe."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.terminal import CTRL_D, UP, Typist

AGENTS = """
from llmosd import Context, agent

@agent
async def recite(ctx: Context, messages: list[dict[str, str]]) -> str:
    return " / ".join(f"{turn['role']}: {turn['content']}" for turn in messages)

@agent
async def shout(ctx: Context, text: str) -> str:
    return text.upper()

@agent
async def slow(ctx: Context, messages: list[dict[str, str]]) -> str:
    if messages[-1]["content"] == "be slow":
        return await ctx.chat(messages, max_tokens=8000)
    return f"{len(messages)} turns; the last reply was {len(messages[-2]['content']) > 20}"

@agent
async def fail(ctx: Context, messages: list[dict[str, str]]) -> str:
    if len(messages) == 1 and messages[0]["content"] == "fail":
        raise ValueError("no such luck")
    return f"{len(messages)} turn"

@agent
async def deaf(ctx: Context) -> None:
    pass

@agent
async def mute(ctx: Context, text: str) -> None:
    await ctx.sleep(3600)
"""


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "agents").mkdir()
    (folder / "agents" / "some.py").write_text(AGENTS)
    daemon = RunningDaemon(folder, "--model", "simulated", "--agents", str(folder / "agents"))
    yield daemon.wait_until_ready()
    daemon.stop()


@pytest.fixture
def daemon(shared_daemon: RunningDaemon) -> RunningDaemon:
    """A daemon for all tests of this file: none of them leaves anything behind."""
    return shared_daemon


@pytest.fixture
def chat(daemon: RunningDaemon, folder: Path) -> Iterator[Callable[..., Typist]]:
    """Opens a conversation on a terminal."""
    typists: list[Typist] = []

    def chat(*arguments: str, **environment: str) -> Typist:
        environment |= {"LLMOSD_SOCKET": str(daemon.socket), "XDG_STATE_HOME": str(folder / "home")}
        typists.append(Typist([SCRIPTS / "llmos", "chat", *arguments], environment).__enter__())
        return typists[-1]

    yield chat
    for typist in typists:
        typist.__exit__(None, None, None)


def test_each_line_of_a_pipe_is_answered_and_the_conversation_is_remembered(daemon: RunningDaemon) -> None:
    out = daemon.llmos("chat", "recite", stdin="one\ntwo\n")
    assert out.stdout.splitlines() == ["user: one", "user: one / assistant: user: one / user: two"]
    assert (out.returncode, out.stderr) == (0, "")


def test_a_program_without_messages_gets_each_text_alone(daemon: RunningDaemon) -> None:
    assert daemon.llmos("chat", "shout", stdin="one\ntwo").stdout == "ONE\nTWO\n"


def test_without_a_program_it_is_the_model_that_answers(daemon: RunningDaemon) -> None:
    out = daemon.llmos("chat", "-a", "max_tokens=3", "-a", "seed=1", stdin="hello\n")
    assert (out.returncode, len(out.stdout.split())) == (0, 3)


def test_a_pipe_of_anything_but_text_gets_a_sentence(daemon: RunningDaemon) -> None:
    command = [SCRIPTS / "llmos", "--socket", daemon.socket, "chat", "shout"]
    out = subprocess.run(command, input=b"one\n\xff\n", capture_output=True, check=False)
    assert (out.returncode, out.stdout) == (2, b"ONE\n")
    assert out.stderr.startswith(b"llmos: BadArguments: a line of standard input is not UTF-8 text")


def test_a_program_that_takes_no_text_is_refused(daemon: RunningDaemon) -> None:
    out = daemon.llmos("chat", "deaf", stdin="hello\n")
    assert (out.returncode, "takes no text" in out.stderr) == (2, True)


def test_the_conversation_is_no_argument_of_the_user(daemon: RunningDaemon) -> None:
    out = daemon.llmos("chat", "recite", "-a", "messages=[]", stdin="x\n")
    assert (out.returncode, out.stdout) == (2, "")
    assert "llmos: BadArguments: -a messages is not possible" in out.stderr


def test_an_error_ends_a_pipe_but_not_a_session(daemon: RunningDaemon, chat: Callable[..., Typist]) -> None:
    out = daemon.llmos("chat", "fail", stdin="fail\nagain\n")
    assert (out.returncode, out.stdout, "no such luck" in out.stderr) == (1, "", True)
    session = chat("fail")
    session.see("> ")
    session.type("fail\n")
    session.see("no such luck")
    session.see("> ")
    session.type("again\n")
    session.see("\n1 turn\n")  # the text without a reply is no turn of the conversation
    session.see("> ")
    session.type(CTRL_D)
    assert session.end() == 0


def test_ctrl_c_ends_the_reply_and_not_the_session(
    daemon: RunningDaemon, chat: Callable[..., Typist], eventually: Callable[..., None]
) -> None:
    session = chat("slow")
    session.see("> ")
    session.type("be slow\n")
    session.see("be slow\n")
    while len(session.screen) < 400:  # tokens are coming
        session.see(" ")
    session.interrupt()
    session.see("the reply was ended")
    session.see("> ")
    with daemon.client() as client:
        eventually(lambda: not client.ps(), "the task has ended")
        eventually(lambda: [row.used for row in client.slots()] == [0], "its slot is free")
    session.type("how many?\n")
    session.see("\n3 turns; the last reply was True\n")
    session.see("> ")
    session.type("/clear\n")
    session.see("> ")
    session.type("/quit\n")
    assert session.end() == 0


def test_ctrl_c_before_the_reply_has_a_line_of_its_own(
    daemon: RunningDaemon, chat: Callable[..., Typist], eventually: Callable[..., None]
) -> None:
    session = chat("mute")
    session.see("> ")
    session.type("Hello?\n")
    with daemon.client() as client:
        eventually(lambda: [row.program for row in client.ps()] == ["mute"], "the task has begun")
    session.interrupt()
    session.see("^C\r\x1b[Kllmos: the reply was ended\n")
    session.see("> ")


def test_ctrl_c_at_the_prompt_only_drops_the_line(chat: Callable[..., Typist]) -> None:
    session = chat("shout")
    session.see("> ")
    session.type("half a li")
    session.see("half a li")
    session.interrupt()
    session.see("ends the session")
    session.see("> ")
    session.type("whole\n")
    session.see("\nWHOLE\n")
    session.see("> ")
    session.type(CTRL_D)
    assert session.end() == 0


def test_text_is_utf_8_whatever_the_locale_of_the_terminal(chat: Callable[..., Typist]) -> None:
    session = chat("shout", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    session.see("> ")
    session.type("naïve\n")
    session.see("NA\\xcfVE\n")  # the escape of a character that this terminal cannot show
    session.see("> ")
    session.type(b"ab\xff\n")
    session.see("llmos: BadArguments: a line of standard input is not UTF-8 text: byte 3 is 0xff; convert it first\n")
    session.see("> ")
    session.type(CTRL_D)
    assert session.end() == 0


def test_lines_are_continued_and_commands_are_not_sent(chat: Callable[..., Typist]) -> None:
    session = chat("shout")
    session.see("> ")
    session.type("one\\\n")
    session.see("... ")
    session.type("two\n")
    session.see("\nONE\nTWO\n")
    session.see("> ")
    session.type("//etc\n")
    session.see("\n/ETC\n")
    session.see("> ")
    session.type("/nonsense\n")
    session.see("no command /nonsense")
    session.see("> ")
    session.type("/help\n")
    session.see("forget the conversation")
    session.see("> ")
    session.type("/quit\n")
    assert session.end() == 0


def test_the_history_of_the_last_session_is_there_and_private(chat: Callable[..., Typist], folder: Path) -> None:
    session = chat("shout")
    session.see("> ")
    session.type("remember me\n")
    session.see("\nREMEMBER ME\n")
    session.see("> ")
    session.type(CTRL_D)
    assert session.end() == 0
    history = folder / "home" / "llmosd" / "chat_history"
    assert (history.read_text(), stat.S_IMODE(history.stat().st_mode)) == ("remember me\n", 0o600)
    again = chat("shout")
    again.see("> ")
    again.type(UP)
    again.see("remember me")
    again.type("\n")
    again.see("\nREMEMBER ME\n")


def test_a_home_that_cannot_be_written_is_no_error(daemon: RunningDaemon, folder: Path) -> None:
    environment = {"LLMOSD_SOCKET": str(daemon.socket), "XDG_STATE_HOME": os.devnull}
    with Typist([SCRIPTS / "llmos", "chat", "shout"], environment) as session:
        session.see("> ")
        session.type("hello\n")
        session.see("\nHELLO\n")
        session.see("> ")
        session.type(CTRL_D)
        assert session.end() == 0


def test_a_session_outlives_the_daemon(launch: Callable[..., RunningDaemon]) -> None:
    mortal = launch()
    with Typist([SCRIPTS / "llmos", "chat", "shout"], {"LLMOSD_SOCKET": str(mortal.socket)}) as session:
        session.see("> ")
        mortal.stop()
        session.type("anyone?\n")
        session.see("NoDaemon")
        session.see("> ")
        launch()
        session.type("anyone now?\n")
        session.see("\nANYONE NOW?\n")
        session.see("> ")
        session.type(CTRL_D)
        assert session.end() == 0


def test_control_characters_of_a_program_do_not_reach_the_terminal(chat: Callable[..., Typist]) -> None:
    session = chat("shout")
    session.see("> ")
    session.type("\x16\x1b]0;title\n")  # Ctrl-V enters the next key as it is
    session.see("\\x1b]0;TITLE")
