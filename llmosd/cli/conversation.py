"""A conversation with a program: the turns so far, and the arguments of the next task.

Used by the command `chat`, which runs the program once for each text of the user. A program with a parameter `messages`
receives the whole conversation; any other program receives the text alone, as its first argument. It never contacts the
daemon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MESSAGES = "messages"  # the parameter for the conversation

Turn = dict[str, str]  # "role" and "content", as in `Context.chat`


class TaskArguments(NamedTuple):
    """The arguments of a task: in order, and by name."""

    positional: tuple[str, ...]
    named: dict[str, Any]


class Conversation:
    """The turns of the user and of the program, in pairs. `remembers`: the program receives all of them."""

    def __init__(self, *, remembers: bool, named: dict[str, Any]) -> None:
        self.remembers = remembers
        self.turns: list[Turn] = []
        self._named = named

    def ask(self, text: str) -> TaskArguments:
        """The arguments of the task that answers `text`. The conversation does not change before `answered`."""
        if not self.remembers:
            return TaskArguments((text,), self._named)
        return TaskArguments((), self._named | {MESSAGES: [*self.turns, _turn("user", text)]})

    def answered(self, text: str, reply: str) -> None:
        """Add a text of the user and the reply to it, or as much of the reply as the user has seen.

        Without any reply the text is not added either: the chat templates of many models take turns in pairs only.
        """
        if self.remembers and reply:
            self.turns += [_turn("user", text), _turn("assistant", reply)]

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns.clear()


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}
