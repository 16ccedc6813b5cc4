"""The prose of the code: the phrases that it must not contain, and the files that nobody has reviewed yet.

The rules stand in CONTRIBUTING.md. A machine can check few of them: the patterns here match phrases that often mark a
sentence that must be read twice. A file in `UNREVIEWED` is exempt; a change to it includes its review, and removes it
from the list.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import documents
from tests.support.paths import ROOT
from tests.support.source import parsed

FOLDERS = ("ipc", "kernel", "llmosd", "agents", "tests")

UNREVIEWED: frozenset[str] = frozenset()
MOST_UNREVIEWED = 0  # lower it with each file that is reviewed

EXEMPT = {
    "kernel/journal/schema.py",  # SQLite stores the text of these statements in every journal
    "tests/unit/test_prose.py",  # names the phrases
}

PHRASES = re.compile(
    r"\b(who(m)?ever|(for|to|by|of|from|with) whom|by and by|told|anew|what (comes|came|becomes|became|is to come) of"
    r"|(earlier|later|next|this) (life|lives)|for want of|(life|lives) of the daemon|in vain)\b",
    re.IGNORECASE,
)
OPENINGS = re.compile(r"^\W*(What|Who|Whoever|Whom)\b")


def files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if name(path) not in EXEMPT)


def prose(path: Path) -> Iterator[str]:
    """The comments and the strings of a file, docstrings among them."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield token.string


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)) is not None:
            yield text


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in files() if name(path) not in UNREVIEWED], ids=name)
def test_a_reviewed_file_reads_plainly(path: Path) -> None:
    assert [found[0] for text in prose(path) if (found := PHRASES.search(text))] == []
    assert [text for text in docstrings(path) if OPENINGS.match(text)] == []


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_a_document_reads_plainly(document) -> None:
    assert [found[0] for found in PHRASES.finditer(document.path.read_text())] == []


def test_the_list_of_files_without_review_names_files_and_only_shrinks() -> None:
    assert {name(path) for path in files()} >= UNREVIEWED
    assert len(UNREVIEWED) <= MOST_UNREVIEWED


def test_every_large_room_has_a_document_that_says_where_to_start() -> None:
    rooms = ["kernel", "ipc", "agents", "config", "tests", "kernel/drivers/transformers"]
    rooms += [f"kernel/{room}" for room in ("durable", "journal", "messages", "models", "policy", "sync")]
    rooms += [f"llmosd/{room}" for room in ("cli", "client", "context", "simulator")]
    written = {document.name: document for document in documents()}
    assert [room for room in rooms if f"{room}/README.md" not in written] == []
    others = {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/traces/README.md"}
    for path in written.keys() - others:
        opening = written[path].path.read_text().split("\n\n")[1]
        assert opening.startswith("Start reading at"), path
