"""Prints the help of one program: `llmos run PROGRAM --help`.

Called instead of the command `run` when `--help` follows a program. It never runs the program; the daemon loads the
program's file to find the parameters.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from ipc.errors import ConnectionLost, NoDaemon, SocketPathInvalid
from ipc.syscalls import DescribeProgram, ParameterInfo, ProgramInfo
from llmosd.cli import show, values
from llmosd.cli.parser import Parser
from llmosd.client.blocking import Client
from llmosd.printable import printable, printable_line

NO_DAEMON = 3
NO_BREAK = "\xa0"
EXPLANATION = """\
A text, @FILE for the content of a file, or - for standard input.
`llmos run --help` explains the options of `run`."""


class HelpOption(argparse.Action):
    """The option `--help` of `run`. Without a program before it, it prints the help of `run` and exits."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        """Choose the help of the program as the command to run."""
        if not getattr(namespace, "program", None):
            parser.print_help()
            parser.exit()
        namespace.command, namespace.needs_no_daemon = program_help, True


def program_help(options: argparse.Namespace) -> int:
    """Print the help of a program; without a daemon that of `run`, and the reason."""
    program = values.program_path(options.program)
    try:
        with Client(options.socket, name="llmos") as client:
            info: ProgramInfo = client.request(DescribeProgram(program))
    except (NoDaemon, ConnectionLost, SocketPathInvalid) as error:
        parser: Parser = options.parser_of_command
        parser.print_help()
        reason = f"llmos: this is the help of `run`; that of {options.program} needs a daemon: {error.message}"
        print(printable_line(reason), file=sys.stderr)
        return NO_DAEMON
    if options.json:
        show.value(info, as_json=True)
    else:
        print(printable(text(options.program, info)), end="")
    return 0


def text(program: str, info: ProgramInfo) -> str:
    """The help of a program, as wide as the terminal. `program`: the name or the path that the user gave."""
    by_position = [parameter for parameter in info.parameters if parameter.positional]
    by_name = [parameter for parameter in info.parameters if not parameter.positional]
    usage = ["llmos run [OPTIONS]", program]
    usage += [_upper(one) if one.required else f"[{_upper(one)}]" for one in by_position]
    usage += [f"-a {one.name}=..." for one in by_name if one.required]
    usage += ["[-a NAME=VALUE ...]"] if any(not one.required for one in by_name) else []
    # A docstring usually begins with the summary.
    description = "\n\n".join(part for part in (info.summary, info.doc.removeprefix(info.summary).strip()) if part)
    parser = argparse.ArgumentParser(
        usage=_usage(usage).replace("%", "%%"),
        description="\n\n".join(map(_filled, description.split("\n\n"))) or None,
        epilog=f"{EXPLANATION}\nfrom {info.source}",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, parameters in (
        ("arguments, in this order or as -a NAME=VALUE", by_position),
        ("arguments by name, as -a NAME=VALUE", by_name),
    ):
        group = parser.add_argument_group(title)
        for parameter in parameters:
            group.add_argument(parameter.name, help=_explained(parameter).replace("%", "%%"))
    return parser.format_help()


def _usage(parts: Sequence[str]) -> str:
    """The parts of a usage, with line breaks only between them."""
    before = "usage: "
    line = before + " ".join(part.replace(" ", NO_BREAK) for part in parts)
    return _filled(line, " " * len(before)).removeprefix(before).replace(NO_BREAK, " ")


def _filled(paragraph: str, indent: str = "") -> str:
    """A paragraph as wide as argparse writes, unless its lines are indented. `indent` begins its further lines."""
    if re.search(r"^\s", paragraph, re.MULTILINE):
        return paragraph
    width = shutil.get_terminal_size().columns - 2
    return textwrap.fill(paragraph, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _explained(parameter: ParameterInfo) -> str:
    form = f": {parameter.form}" if parameter.form else ""
    default = "" if parameter.default in {"", "None"} else f" (default: {parameter.default})"
    return f"{parameter.type}{form}{default}"


def _upper(parameter: ParameterInfo) -> str:
    return parameter.name.upper()
