"""The small windows of `llmos top`: a question before a process is killed, the list of keys, and the filter.

Opened by `llmosd.cli.top`. While one is open, its keys reach no other window. They never contact the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.screen import ModalScreen
from textual.widgets import Input, Static

BOX = "{ width: auto; max-width: 100%; height: auto; max-height: 100%; padding: 0 1; border: round $accent; }"


class Question(ModalScreen[bool]):
    """Asks `text`. The key y answers yes, and every other key no."""

    CSS = f"Question {{ align: center middle; }} Question Static {BOX}"

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(self._text), id="question")

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss(event.character in {"y", "Y"})


class KeyList(ModalScreen[None]):
    """Shows the keys and their effects. Any key closes it."""

    CSS = f"KeyList {{ align: center middle; }} KeyList Static {BOX}"

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        widest = max(len(key) for key, _ in self._keys)
        lines = [f"{key:{widest}}  {effect}" for key, effect in self._keys]
        yield Static(Text("\n".join([*lines, "", "any key closes this list"])), id="keys")

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss()


class FilterLine(ModalScreen[None]):
    """Edits the filter, and calls `changed` with each new text. Enter keeps the text; Escape restores the first."""

    CSS = "FilterLine { align: center bottom; background: transparent; } FilterLine Input { dock: bottom; }"

    def __init__(self, text: str, changed: Callable[[str], None]) -> None:
        super().__init__()
        self._text = text
        self._changed = changed

    def compose(self) -> ComposeResult:
        yield Input(
            self._text,
            placeholder="show only rows with this text; Enter keeps it, Escape drops the change",
            max_length=200,
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        self._changed(event.value)

    def on_input_submitted(self) -> None:
        self.dismiss()

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            self._changed(self._text)
            self.dismiss()
