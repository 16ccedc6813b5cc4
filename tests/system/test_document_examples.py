"""The examples of the documents do what the documents show, in the order in which a reader runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import transcript
from tests.support.documents import Document, documents
from tests.support.transcript import fits

RUN = [document for document in documents() if {fence.language for fence in document.fences} & {"console", "python"}]


@pytest.mark.model
@pytest.mark.parametrize("document", RUN, ids=[document.name for document in RUN])
def test_the_examples_of_a_document_do_what_it_shows(document: Document, folder: Path) -> None:
    wrong = list(transcript.run(document, folder))
    assert wrong == [], "\n\n".join(wrong)


def test_the_manuals_have_examples() -> None:
    manuals = {"README.md", *(f"llmosd/{part}/README.md" for part in ("cli", "client", "context", "simulator"))}
    assert manuals <= {document.name for document in RUN}


def test_dots_stand_for_any_text_and_for_any_lines() -> None:
    assert fits("PID  STATE ...\n...\n12 ... done\n", "PID STATE AGE\n1 x\n2 y\n12  ask   done\n")
    assert fits("", "")
    assert fits("a ... b\n", "a b\n")
    assert not fits("done\n", "failed\n")
    assert not fits("", "a warning\n")
    assert not fits("...\ndone\n", "done\nand more\n")
