"""The command `chat`: a conversation with a program, line by line.

Called by the command line. Each text of the user is one task, on a connection of its own: a reply that is interrupted
ends with its connection, and the conversation survives a restart of the daemon. A task never outlives the session.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ipc.errors import BadArguments, ContextOverflow, LlmosError
from ipc.messages import Event, Restarted, Result, Token
from ipc.syscalls import DescribeProgram, ProgramInfo
from llmosd.cli import values
from llmosd.cli.arguments import ArgumentReader
from llmosd.cli.complaints import complain
from llmosd.cli.conversation import MESSAGES, Conversation
from llmosd.cli.json_text import json_text
from llmosd.cli.options import Add, CommonOptions
from llmosd.cli.prompt import Prompt
from llmosd.cli.stream import EventPrinter, Labels, clear_line
from llmosd.client.blocking import Client

HELP = """\
/clear  forget the conversation
/quit   end the session; so does Ctrl-D
/help   show this
Ctrl-C ends the reply. A backslash at the end continues a line. A text that begins with // is sent with one slash."""


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the command to the command line."""
    command = add("chat", parents=[common.daemon], help="talk with a model, or with any program")
    command.add_argument(
        "program", nargs="?", default="chat", help="a program with a parameter `messages`, or one that takes a text"
    )
    command.add_argument(
        "-a", "--arg", metavar="NAME=VALUE", action="append", default=[], help="an argument of every task, by name"
    )
    command.add_argument("--priority", type=int, help="-20 to 20, higher is more urgent")
    command.add_argument("--owner", help="the owner whose limits and share apply")
    command.set_defaults(command=chat)


def chat(client: Client, options: argparse.Namespace) -> int:
    options.program = values.program_path(options.program)
    program = client.request(DescribeProgram(options.program))
    named = ArgumentReader(as_json=False).named(options.arg)
    remembers = _takes_messages(program)
    if remembers and MESSAGES in named:
        raise BadArguments(f"-a {MESSAGES} is not possible: `llmos chat` gives the conversation for this argument")
    conversation = Conversation(remembers=remembers, named=named)
    client.close()
    with Prompt() as prompt:
        dialogue = _Dialogue(options, conversation, interactive=prompt.interactive)
        if prompt.interactive:
            print(f"llmos: {program.name} answers; /help shows the commands, Ctrl-D ends", file=sys.stderr)
        while dialogue.going:
            try:
                text = prompt.read()
                if text is None:
                    dialogue.end()
                else:
                    dialogue.handle(text)
            except BadArguments as error:  # the line is not text
                if not prompt.interactive:
                    raise
                complain(error)
            except KeyboardInterrupt:
                if not prompt.interactive:
                    raise
                print("\nllmos: /quit or Ctrl-D ends the session", file=sys.stderr)
    return 0


def _takes_messages(program: ProgramInfo) -> bool:
    """Whether the program takes the whole conversation. Raises `BadArguments` if it takes no text either."""
    if any(parameter.name == MESSAGES for parameter in program.parameters):
        return True
    if any(parameter.positional for parameter in program.parameters):
        return False
    raise BadArguments(
        f"program {program.name} takes no text; `llmos chat` needs a program with a parameter `{MESSAGES}` or with one "
        "for a text",
        program=program.name,
    )


class _Dialogue:
    """The exchange with the user at the prompt. `going`: the user has not ended the session yet."""

    def __init__(self, options: argparse.Namespace, conversation: Conversation, *, interactive: bool) -> None:
        self.going = True
        self._options = options
        self._conversation = conversation
        self._interactive = interactive

    def handle(self, text: str) -> None:
        """Obey a command of the user, or send a text to the program and print its reply.

        Raises the error of the task; an interactive session prints the error instead, because the user can go on.
        """
        if not self._interactive:
            self._reply(text)
        elif text.startswith("/") and not text.startswith("//"):
            self._obey(text.strip())
        elif text.strip():
            try:
                self._reply(text.removeprefix("/"))
            except ContextOverflow as error:
                print(f"llmos: {error.message}; /clear forgets the conversation", file=sys.stderr)
            except LlmosError as error:
                complain(error)

    def end(self) -> None:
        """End the session."""
        self.going = False
        if self._interactive:
            print()  # the shell's prompt begins a new line

    def _obey(self, command: str) -> None:
        if command == "/quit":
            self.going = False
        elif command == "/clear":
            self._conversation.forget()
        elif command == "/help":
            print(HELP)
        else:
            print(f"llmos: no command {command}; /help lists them", file=sys.stderr)

    def _reply(self, text: str) -> None:
        reply = _SeenReply()
        positional, named = self._conversation.ask(text)
        try:
            with Client(self._options.socket, name="llmos chat") as client:
                task = client.submit(
                    self._options.program,
                    named,
                    positional=positional,
                    lenient=True,
                    priority=self._options.priority,
                    owner=self._options.owner,
                )
                printer = EventPrinter(Labels(client, task.pid), stream=self._interactive, children=False)
                printer.print(reply.watch(task.events(), task.pid))
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            clear_line()  # the terminal shows ^C
            print("llmos: the reply was ended", file=sys.stderr)
        self._conversation.answered(text, reply.text)


class _SeenReply:
    """The reply of a task as the user sees it. `text`: the result, or else the generated text so far."""

    def __init__(self) -> None:
        self.text = ""

    def watch(self, events: Iterable[Event], pid: int) -> Iterator[Event]:
        """The same events, noted as they pass."""
        call = 0
        for event in events:
            if isinstance(event, Token) and event.pid == pid:
                self.text = event.text if event.call != call else self.text + event.text
                call = event.call
            elif isinstance(event, Restarted):
                pid, self.text = event.pid, ""
            elif isinstance(event, Result):
                self.text = _as_text(event.value)
            yield event


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)
