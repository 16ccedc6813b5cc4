"""The parser of the command line, with short complaints: a mistyped command or option leads to a similar one.

Made once by `llmosd.cli.command_line`. It decides what belongs to which option, and nothing about the values.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from llmosd.printable import printable_line

USAGE = 2
NUMBER = re.compile(r"-(\d+|\d*\.\d+)$")


class Parser(argparse.ArgumentParser):
    """A parser of options. `commands`: if it has commands, the action of argparse that holds them."""

    commands: argparse.Action | None = None

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of one command. Exits with a short complaint if something is mistyped."""
        options, rest = self.parse_known_args(arguments)
        chosen: Parser = getattr(options, "parser_of_command", self)
        words = list(chosen.words(rest))
        if chosen is self:
            self.error("the following arguments are required: COMMAND")
        if words:
            # argparse gives words that stand after an option to no positional argument.
            if not isinstance(getattr(options, "arguments", None), list):
                chosen.complain(f"there is no use for {words[0]}; `{chosen.prog} --help` explains the command")
            options.arguments += words
        return options

    def words(self, rest: Iterable[str]) -> Iterable[str]:
        """The words among arguments that no option has taken. Exits if an unknown option is among them."""
        literal = False
        for argument in rest:
            if literal or not _is_option(argument):
                yield argument
            elif argument == "--":
                literal = True
            else:
                option = argument.partition("=")[0]
                self.complain_about("option", option, self._option_string_actions)

    def complain_about(self, kind: str, word: str, known: Iterable[str]) -> NoReturn:
        """Exit because of a mistyped command or option."""
        from kernel.programs.suggestion import similar

        # Without their dashes, which would make all of them similar.
        names = {one.lstrip("-"): one for one in known}
        near = names.get(similar(word.lstrip("-"), names) or "")
        hint = f"did you mean {near}?" if near is not None else f"`{self.prog} --help` lists the {kind}s"
        self.complain(f"no {kind} {word}; {hint}")

    def complain(self, text: str) -> NoReturn:
        """Exit with a complaint of one line."""
        self.exit(USAGE, printable_line(f"{self.prog}: {text}") + "\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Override the check of argparse, whose complaint about an unknown command lists all commands."""
        if action is self.commands and action.choices is not None and value not in action.choices:
            self.complain_about("command", str(value), action.choices)
        super()._check_value(action, value)


def _is_option(argument: str) -> bool:
    """Whether argparse takes an argument for an option: not `-`, no text with spaces, and no number."""
    return len(argument) > 1 and argument[0] == "-" and " " not in argument and not NUMBER.match(argument)
