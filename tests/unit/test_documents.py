"""Everything that the documents name exists: paths, links, commands, options, settings, classes.

The examples in the documents run in `tests/system/test_document_examples.py`. A document may name
nothing that these tests cannot find.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import builtins
import re
import shlex
import subprocess
import tomllib
import typing
from collections.abc import Iterator
from functools import cache

import msgspec
import pytest

from llmosd.cli.command_line import parser as llmos_parser
from llmosd.daemon import settings
from llmosd.daemon.daemon import parser as llmosd_parser
from tests.support import transcript
from tests.support.documents import Document, documents, parse
from tests.support.paths import AGENTS, ROOT
from tests.support.source import parsed

MOST_WORDS = {"README.md": 1200, "ARCHITECTURE.md": 1500}
FOLDERS = ("llmosd/", "kernel/", "ipc/", "agents/", "config/", "tests/", ".ci/")
SUFFIXES = (".py", ".md", ".toml", ".service", ".socket", ".json", ".sqlite", ".sock", ".csv.gz")

# Names that look like our classes but belong to the standard library or to systemd.
OTHERS = {"Path", "PrivateTmp", "TaskGroup"}

REFUSED = {"nonsense"}  # a program of an example that shows an error

# `sh` blocks are not run: they change the reader's machine, or take too long. They may contain only these commands.
NOT_RUN = {
    "make": "a test cannot run all tests; the target is checked",
    "pip": "installs from the package registry; `tests/system/test_installation.py` installs the wheel",
    "cp": "copies units into the reader's own folder; the paths are checked",
    "systemctl": "needs the reader's own service manager; `tests/system/test_systemd.py` plays its part",
    "loginctl": "changes how the reader is logged in",
    "git": "changes the checkout",
}


def ids(document: Document) -> str:
    return document.name


every = pytest.mark.parametrize("document", documents(), ids=ids)


@cache
def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\n") if (ROOT / name).is_file()]


@cache
def sources() -> str:
    """The code of the project in one text."""
    return "\n".join((ROOT / name).read_text() for name in tracked() if name.endswith((".py", "Makefile", ".ci/demo")))


@cache
def classes() -> set[str]:
    """The names of all classes and types, and of those that a reader knows from Python itself."""
    found = set(dir(builtins)) | set(dir(asyncio)) | set(dir(typing)) | OTHERS
    for name in tracked():
        if name.endswith(".py"):
            for node in ast.walk(parsed(ROOT / name)):
                if isinstance(node, ast.ClassDef):
                    found.add(node.name)
                elif isinstance(node, ast.Assign):  # the alias of a type
                    found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def shell_lines(document: Document) -> Iterator[str]:
    """The commands that a document shows, in blocks and in its text."""
    for fence in document.fences:
        if fence.language == "console":
            yield from (command for command, _ in transcript.commands(fence.text))
        elif fence.language == "sh":
            yield from (line for line in fence.text.splitlines() if line.strip() and not line.startswith("#"))
    yield from (span for span in document.spans if re.match(r"(llmos|llmosd|make)( |$)", span))


def invocations(line: str) -> Iterator[list[str]]:
    """The commands of one line of shell, as lists of words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def paths(document: Document) -> Iterator[str]:
    """The words of a document that look like paths of the project."""
    fences = [fence.text for fence in document.fences if fence.language in {"", "text", "sh"}]
    for text in [*document.spans, *fences]:
        for word in re.findall(r"[^\s,;:()\[\]'\"=]+", text):
            path = word.rstrip(".")
            if not path or "://" in path or (path[0] in "~$/." and not path.startswith(".ci/")):
                continue
            if path.startswith(FOLDERS) or path.endswith(SUFFIXES):
                yield path


def exists(path: str, document: Document) -> bool:
    pattern = re.sub(r"\bX\b", "*", path.removeprefix("llmosd/share/")).rstrip("/")  # where the wheel has it
    if any(any(base.glob(pattern)) for base in (ROOT, document.path.parent)):
        return True
    if path in {fence.file for fence in document.fences}:
        return True
    if "/" not in path:  # a file of the room, or one that the daemon writes
        room = document.path.parent.relative_to(ROOT)
        return any(name.endswith(f"/{path}") and (ROOT / name).is_relative_to(ROOT / room) for name in tracked()) or (
            re.search(rf'["/]{re.escape(path)}["/]', sources()) is not None
        )
    return False


@every
def test_every_path_in_a_document_exists(document: Document) -> None:
    assert [path for path in paths(document) if not exists(path, document)] == []


@every
def test_every_link_leads_to_a_file_and_a_heading_of_the_project(document: Document) -> None:
    broken = []
    for link in document.links:
        if link.startswith("https://"):
            continue  # a test reaches nothing outside of this machine
        path, _, heading = link.partition("#")
        target = (document.path.parent / path).resolve() if path else document.path
        if not target.exists() or (heading and heading not in parse(target).anchors):
            broken.append(link)
    assert broken == []


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a command line."""
    subparsers = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return subparsers[0].choices if subparsers else {}


def subcommand(parser: argparse.ArgumentParser, words: list[str]) -> str | None:
    """The first word that is neither an option nor the value of one."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return word
        option = parser._option_string_actions.get(word)
        if option is not None and option.nargs is None:
            next(rest, None)
    return None


def wrong(words: list[str]) -> str | None:
    """The part of one command that does not exist, if any."""
    program, rest = words[0], words[1:]
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return next((f"make {word}" for word in rest if word.isalpha() and word not in targets), None)
    if program not in {"llmos", "llmosd"}:
        return None
    parser = llmos_parser() if program == "llmos" else llmosd_parser()
    name = subcommand(parser, rest)
    if program == "llmos" and name is not None and not name.isupper():  # COMMAND stands for any
        if name not in actions(parser):
            return f"llmos {name}"
        parser = actions(parser)[name]
    known = set(parser._option_string_actions)
    options = (word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word))
    return next((f"{program} {name or ''} {word}" for word in options if word not in known), None)


@every
def test_every_command_and_option_in_a_document_exists(document: Document) -> None:
    found = (wrong(words) for line in shell_lines(document) for words in invocations(line))
    assert [problem for problem in found if problem] == []


def agents(text: str) -> set[str]:
    """The names of the agents that the code `text` defines."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.AsyncFunctionDef)]
    return {
        function.name for function in functions if any("agent" in ast.unparse(mark) for mark in function.decorator_list)
    }


@cache
def shipped_agents() -> set[str]:
    return {name for path in AGENTS.glob("*.py") for name in agents(path.read_text())}


def programs(document: Document) -> Iterator[str]:
    """The programs that a document runs: in its shell commands, and in its examples in Python."""
    run = actions(llmos_parser())["run"]
    for line in shell_lines(document):
        for words in invocations(line):
            if words[0] == "llmos" and "run" in words:
                program = subcommand(run, words[words.index("run") + 1 :])
                if program is not None and not program.isupper():  # PROGRAM stands for any
                    yield program
    for fence in document.fences:
        if fence.language == "python":
            yield from re.findall(r'(?:\.(?:run|submit|spawn)|\bChild)\(\s*f?"([^"]+)"', fence.text)


def runs(program: str, document: Document) -> bool:
    """Whether a program is shipped or defined on the page, by name or as a file."""
    files = [fence.file for fence in document.fences]
    if program.endswith(".py"):
        return program.removeprefix("./") in files
    own = {name for fence in document.fences if fence.language == "python" for name in agents(fence.text)}
    return program in own | shipped_agents() | REFUSED


@every
def test_every_program_that_a_document_runs_is_shipped_or_defined_on_its_page(document: Document) -> None:
    assert [program for program in programs(document) if not runs(program, document)] == []


def test_every_program_that_the_code_names_to_users_is_shipped() -> None:
    """Help texts, error texts, docstrings and the demonstration show only commands that run."""
    shown = set(re.findall(r"llmos run (?:-[\w-]+ )*([a-z]\w*)", sources_of_users()))
    assert shown - shipped_agents() == set()
    assert "ask" in shown


@cache
def sources_of_users() -> str:
    """The code of the project, except its tests, in one text."""
    own = [name for name in tracked() if name.endswith(".py") and not name.startswith("tests/")]
    return "\n".join((ROOT / name).read_text() for name in [*own, "Makefile", ".ci/demo"])


@every
def test_only_commands_that_cannot_run_in_a_test_stand_in_blocks_that_are_not_run(document: Document) -> None:
    blocks = [fence.text for fence in document.fences if fence.language == "sh"]
    programs = {words[0] for block in blocks for line in block.splitlines() for words in invocations(line)}
    assert programs <= NOT_RUN.keys()
    languages = {fence.language for fence in document.fences}
    assert languages <= {"console", "python", "toml", "sh", "text"}, "each block must name one of these languages"


@every
def test_every_setting_in_a_document_exists(document: Document) -> None:
    for fence in document.fences:
        if fence.language == "toml":
            settings._check(tomllib.loads(fence.text), f"{document.name}:{fence.line}")
    fields = known_settings()
    dotted = {span for span in document.spans if re.fullmatch(r"(\w+\.)+\w+", span) and not span.endswith(SUFFIXES)}
    named = {span for span in dotted if span.split(".")[0] in fields}
    unknown = {name for name in named if not setting_exists(name.split("."))}
    sections = {span[1:-1] for span in document.spans if re.fullmatch(r"\[[a-z_.X]+\]", span)}
    assert unknown | {name for name in sections if not setting_exists(name.split("."))} == set()


def known_settings() -> set[str]:
    return {field.name for field in msgspec.structs.fields(settings.Settings)} & {"models", "tools", *settings.SECTIONS}


def setting_exists(names: list[str]) -> bool:
    kind: typing.Any = settings.Settings
    for name in names:
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            found = {field.name: field.type for field in msgspec.structs.fields(kind)}
            if name not in found:
                return False
            kind = found[name]
        else:
            return False
    return True


@every
def test_every_class_and_variable_of_the_environment_in_a_document_exists(document: Document) -> None:
    words = {re.split(r"[.(]", span)[0] for span in document.spans}
    camel = {word for word in words if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]*)+\w*", word)}
    variables = {word for span in document.spans for word in re.findall(r"\bLLMOSD?_[A-Z_]+", span)}
    own = {node for fence in document.fences for node in re.findall(r"^class (\w+)", fence.text, re.MULTILINE)}
    assert camel - classes() - own == set()
    assert {name for name in variables if name not in sources()} == set()


@cache
def homes() -> dict[str, list[str]]:
    """The text of the files that define each class, by its name; `ctx` is any file of the context."""
    found: dict[str, list[str]] = {}
    for name in tracked():
        if name.endswith(".py"):
            for node in ast.walk(parsed(ROOT / name)):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append((ROOT / name).read_text())
    found["ctx"] = [path.read_text() for path in (ROOT / "llmosd" / "context").glob("*.py")]
    return found


@every
def test_every_attribute_in_a_document_exists(document: Document) -> None:
    named = {found for span in document.spans for found in re.findall(r"^(\w+)\.(\w+)(?![\w.])", span)}
    known = homes()
    missing = [
        f"{owner}.{attribute}"
        for owner, attribute in named
        if owner in known and not any(re.search(rf"\b{attribute}\b", text) for text in known[owner])
    ]
    assert missing == []


@every
def test_every_python_example_is_python(document: Document) -> None:
    for fence in document.fences:
        if fence.language == "python":
            ast.parse(fence.text)


@pytest.mark.parametrize(("name", "most"), MOST_WORDS.items())
def test_the_two_documents_that_everybody_reads_are_short(name: str, most: int) -> None:
    assert parse(ROOT / name).words <= most


def test_a_mistake_in_a_document_is_found() -> None:
    """The checks above find mistakes: each name in this document is wrong."""
    text = "`kernel/nowhere.py` `models.X.nonsense` `[resources.nonsense]` `NoSuchClass` `LLMOSD_NONSENSE` "
    text += "`llmos nonsense` `llmos ps --nonsense` `make nonsense` `llmos run -d no_program` [text](nowhere.md)\n"
    document = parse(ROOT / "nowhere.md", text)
    checks = [
        test_every_path_in_a_document_exists,
        test_every_link_leads_to_a_file_and_a_heading_of_the_project,
        test_every_command_and_option_in_a_document_exists,
        test_every_program_that_a_document_runs_is_shipped_or_defined_on_its_page,
        test_every_class_and_variable_of_the_environment_in_a_document_exists,
    ]
    for check in checks:
        with pytest.raises(AssertionError):
            check(document)
    with pytest.raises(AssertionError):
        test_every_setting_in_a_document_exists(document)
    found = [wrong(words) for line in shell_lines(document) for words in invocations(line)]
    assert [problem for problem in found if problem] == ["llmos nonsense", "llmos ps --nonsense", "make nonsense"]
