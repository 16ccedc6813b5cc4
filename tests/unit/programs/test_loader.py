"""Programs: found by name and by path, loaded when they change, and one that is broken harms no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pytest

from ipc.abi import AGENT_ATTRIBUTE, AgentMark
from ipc.errors import AgentFailed, BadArguments, UnknownProgram
from ipc.syscalls import Programs as ListPrograms
from kernel.arguments import arguments_struct
from kernel.programs import Program, Programs
from llmosd import agent
from llmosd.context import ChatOptions, Context

AGENT = """
from llmosd import agent, Context

@agent
async def {name}(ctx: Context, n: int = {n}) -> int:
    "Answers {n}."
    return n
"""


def write(folder: Path, file: str, text: str, when: int = 1) -> Path:
    """A program file with a time of change of its own."""
    path = folder / file
    path.write_text(text)
    os.utime(path, ns=(when, when))
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    found = Programs([tmp_path])
    found._installed = []
    return found


# ---- finding and loading


def test_a_program_is_found_by_the_name_of_its_coroutine(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "file.py", AGENT.format(name="worker", n=1))
    assert programs.by_name.get("worker") is None
    program = programs.load("worker")
    assert (program.name, program.summary, program.source) == ("worker", "Answers 1.", str(tmp_path / "file.py"))
    assert programs.by_name.get("worker") is program


def test_a_file_that_did_not_change_is_not_run_again(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    first = programs.load("a")
    programs.refresh()
    assert programs.by_name.get("a") is first


def test_a_file_that_changed_is_read_afresh(programs: Programs, tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    assert programs.load(str(path)).summary == "Answers 1."
    write(tmp_path, "a.py", AGENT.format(name="a", n=2), when=2_000_000_000)
    assert programs.load(str(path)).summary == "Answers 2."


def test_a_file_that_is_gone_is_forgotten(programs: Programs, tmp_path: Path) -> None:
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    programs.load("a")
    path.unlink()
    programs.refresh()
    with pytest.raises(UnknownProgram):
        programs.load("a")


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "def (", "raise SystemExit(1)", "1 / 0"])
def test_a_broken_file_is_listed_with_its_error_and_harms_no_other(
    programs: Programs, tmp_path: Path, text: str
) -> None:
    path = write(tmp_path, "broken.py", text)
    write(tmp_path, "fine.py", AGENT.format(name="fine", n=1))
    programs.refresh()
    broken, fine = programs.listing()
    assert (broken.name, fine.name) == ("broken", "fine")
    assert str(path) in broken.error
    assert not fine.error
    with pytest.raises(AgentFailed, match="cannot be loaded"):
        programs.load("broken")
    programs.load("fine")


def test_a_broken_file_that_is_corrected_loads(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "a.py", "1 / 0")
    with pytest.raises(AgentFailed):
        programs.load("a")
    write(tmp_path, "a.py", AGENT.format(name="a", n=1), when=2_000_000_000)
    assert programs.load("a").name == "a"


def test_an_agent_with_parameters_that_have_no_name_is_a_broken_file(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "a.py", "from llmosd import agent\n@agent\nasync def a(ctx, *rest): ...\n")
    with pytest.raises(AgentFailed, match="cannot be given by name"):
        programs.load("a")


def test_private_files_and_imported_agents_are_no_programs(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "_private.py", AGENT.format(name="private", n=1))
    path = write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    text = f"import importlib.util as u\ns = u.spec_from_file_location('x', {str(path)!r})\n"
    text += "m = u.module_from_spec(s)\ns.loader.exec_module(m)\na = m.a\n"
    write(tmp_path, "b.py", text)
    programs.refresh()
    assert [info.name for info in programs.listing()] == ["a"]


def test_a_path_runs_a_file_and_a_name_after_it_picks_one(programs: Programs, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    path = write(other, "two.py", AGENT.format(name="one", n=1) + AGENT.format(name="two", n=2))
    assert programs.load(f"{path}:two").name == "two"
    with pytest.raises(UnknownProgram, match="one, two; name one as"):
        programs.load(str(path))
    with pytest.raises(UnknownProgram, match="one, two"):
        programs.load(f"{path}:three")
    with pytest.raises(UnknownProgram, match="no file"):
        programs.load(str(other / "missing.py"))
    with pytest.raises(UnknownProgram, match="no file of Python code"):
        programs.load(str(write(other, "notes.txt", "no code")))
    empty = write(other, "empty.py", "")
    with pytest.raises(UnknownProgram, match="mark a coroutine with @agent"):
        programs.load(str(empty))


def test_files_of_one_name_in_two_folders_do_not_mix(programs: Programs, tmp_path: Path) -> None:
    paths = []
    for n in (1, 2):
        folder = tmp_path / f"f{n}"
        folder.mkdir()
        paths.append(write(folder, "same.py", AGENT.format(name="same", n=n)))
    assert [programs.load(str(path)).summary for path in paths] == ["Answers 1.", "Answers 2."]


def test_a_later_folder_goes_over_an_earlier_one(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for n, folder in enumerate(folders):
        folder.mkdir()
        write(folder, "a.py", AGENT.format(name="a", n=n))
    programs = Programs(folders)
    assert programs.load("a").source == str(folders[1] / "a.py")


def test_an_unknown_name_is_told_with_the_known_ones_and_the_way_to_a_file(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "a.py", AGENT.format(name="a", n=1))
    with pytest.raises(UnknownProgram, match=r"'b'; known: a\. A path such as \./b\.py"):
        programs.load("b")


async def test_the_list_of_programs_is_read_off_the_loop(system: Any, tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    write(folder, "a.py", AGENT.format(name="a", n=1))
    assert [(info.name, info.error) for info in await system.call(ListPrograms())] == [("a", "")]


# ---- arguments


class Options(TypedDict, total=False):
    depth: int
    label: str


async def example(ctx: Context, text: str, count: int = 1, *, flag: bool = False, **options: Unpack[Options]) -> None:
    pass


@pytest.fixture
def program() -> Program:
    return Program(example, AgentMark("example", ""), "test")


def test_only_what_was_given_is_bound(program: Program) -> None:
    assert program.bind({"text": "a"}) == {"text": "a"}
    assert program.bind({"flag": True, "depth": 2}, ["a", 3]) == {"text": "a", "count": 3, "flag": True, "depth": 2}


@pytest.mark.parametrize(
    ("args", "positional", "what"),
    [
        ({}, [], "text"),
        ({"text": 1}, [], "Expected `str`"),
        ({"text": "a", "depth": "deep"}, [], "depth"),
        ({"text": "a", "width": 1}, [], "width"),
        ({}, ["a", 1, True], "takes 2 positional"),
        ({"text": "a"}, ["b"], "got text twice"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    program: Program, args: dict[str, Any], positional: list[Any], what: str
) -> None:
    with pytest.raises(BadArguments, match=what) as caught:
        program.bind(args, positional)
    assert caught.value.message.startswith("example(")
    assert caught.value.data == {"program": "example"}


def test_lenient_reads_numbers_and_flags_from_text(program: Program) -> None:
    bound = program.bind({"flag": "true", "depth": "4"}, ["5", "6"], lenient=True)
    assert bound == {"text": "5", "count": 6, "flag": True, "depth": 4}
    with pytest.raises(BadArguments, match="count"):
        program.bind({"count": "many"}, ["x"], lenient=True)


def test_a_parameter_without_a_type_takes_anything() -> None:
    async def free(ctx, value, other=None):  # type: ignore[no-untyped-def]
        pass

    bind = Program(free, AgentMark("free", ""), "test").bind
    assert bind({"value": {"a": [1]}}) == {"value": {"a": [1]}}
    assert bind({"value": None, "other": 2}) == {"value": None, "other": 2}


def test_the_options_of_a_chat_are_arguments() -> None:
    async def asks(ctx: Context, prompt: str, **options: Unpack[ChatOptions]) -> None:
        pass

    program = Program(asks, AgentMark("asks", ""), "test")
    assert program.bind({"prompt": "x", "stop": "y", "max_tokens": 3}) == {"prompt": "x", "stop": "y", "max_tokens": 3}
    with pytest.raises(BadArguments):
        program.bind({"prompt": "x", "max_tokens": "three"})


def test_parameters_that_cannot_be_named_are_refused() -> None:
    async def positional_only(ctx: Context, a: int, /) -> None: ...
    async def variadic(ctx: Context, *a: int) -> None: ...
    async def untyped_options(ctx: Context, **a: int) -> None: ...

    for function in (positional_only, variadic, untyped_options):
        with pytest.raises(TypeError, match="cannot be given by name"):
            arguments_struct(function, ("ctx",))


# ---- the mark


def test_the_decorator_marks_and_changes_nothing() -> None:
    async def plain(ctx: Context) -> None:
        """What it does.

        And more.
        """

    assert agent(plain) is plain
    assert getattr(plain, AGENT_ATTRIBUTE) == AgentMark("plain", "What it does.")
    assert getattr(agent(name="n", summary="s")(plain), AGENT_ATTRIBUTE) == AgentMark("n", "s")


def test_only_a_coroutine_function_with_a_context_can_be_an_agent() -> None:
    def no_coroutine(ctx: Context) -> None: ...
    async def no_context() -> None: ...

    for function in (no_coroutine, no_context):
        with pytest.raises(TypeError, match="async def"):
            agent(function)


def test_the_decorator_may_be_imported_from_its_own_module_too() -> None:
    code = "from llmosd.decorators import agent as first; from llmosd import agent; assert agent is first, agent"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
