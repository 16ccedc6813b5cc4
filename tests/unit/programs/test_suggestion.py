"""A mistyped name leads to the most similar known name, or to none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.errors import UnknownProgram
from kernel.programs.loader import ProgramLoader
from kernel.programs.suggestion import did_you_mean, similar


@pytest.mark.parametrize(
    ("word", "near"), [("rn", "run"), ("runn", "run"), ("histroy", "history"), ("zzz", None), ("", None)]
)
def test_a_similar_name_is_found(word: str, near: str | None) -> None:
    assert similar(word, ["history", "run", "tree"]) == near


def test_the_search_is_bounded() -> None:
    assert similar("x" * 1_000_000, ["x" * 100]) == "x" * 100
    assert similar("run", (f"{number}" for number in range(10**12))) is None


def test_the_question_fits_into_a_sentence() -> None:
    assert did_you_mean("run") + "known: run" == "did you mean run? known: run"
    assert did_you_mean(None) == ""


def test_an_unknown_program_leads_to_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text("from llmosd import agent\n\n@agent\nasync def ask(ctx) -> None: ...\n")
    loader = ProgramLoader([tmp_path])
    loader._entry_point_programs = []
    with pytest.raises(UnknownProgram, match=r"no program 'aks'; did you mean ask\? known: ask\. A path"):
        loader.load("aks")
