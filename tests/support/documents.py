"""The documents of the project as data: their code spans, links, headings and fenced blocks.

Used by the tests that check documents. It reads Markdown and never runs an example: `transcript` does.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.paths import ROOT

_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text, and the number of its first line in the document."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the block stands for: the name in its first line, if that is a comment such as `# agent.py`."""
        found = re.match(r"# ([\w-]+\.\w+)\n", self.text)
        return found and found[1]


@dataclass
class Document:
    """One Markdown file. `links` are targets as written; `anchors` are the names of its headings."""

    path: Path
    fences: list[Fence] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    words: int = 0

    @property
    def name(self) -> str:
        """Its path below the root of the project."""
        return str(self.path.relative_to(ROOT))


@cache
def documents() -> list[Document]:
    """All Markdown files of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [parse(ROOT / name) for name in sorted(listed.stdout.split()) if (ROOT / name).exists()]


def parse(path: Path, text: str | None = None) -> Document:
    """Parse one Markdown file, or `text` as if the file contained it."""
    text = path.read_text() if text is None else text
    document = Document(path, words=len(text.split()))
    tokens = _MARKDOWN.parse(text)
    for place, token in enumerate(tokens):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            document.fences.append(Fence(token.info.strip(), token.content, line))
        elif token.type == "inline":
            _read_inline(document, token)
            if tokens[place - 1].type == "heading_open":
                document.anchors.add(anchor(token.content))
    return document


def anchor(heading: str) -> str:
    """The anchor that code hosts derive from a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _read_inline(document: Document, token: Token) -> None:
    for child in token.children or ():
        if child.type == "code_inline":
            document.spans.append(child.content)
        elif child.type in {"link_open", "image"}:
            document.links.append(str(child.attrs.get("href") or child.attrs.get("src")))
