"""A constraint that the grammar library refuses is refused with the cause and the place, in one whole sentence."""

from __future__ import annotations

import pytest

from kernel.drivers.transformers.grammar_errors import explain

llguidance = pytest.importorskip("llguidance", reason="constraints need llguidance (extra `local`)")


def cause(kind: str, value: str) -> str:
    """The cause that the installed library gives for `value`, explained."""
    matcher = llguidance.LLMatcher
    make = {"schema": matcher.grammar_from_json_schema, "regex": matcher.grammar_from_regex}
    grammar = make.get(kind, matcher.grammar_from_lark)(value)
    return explain(matcher.validate_grammar(grammar), kind)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("(ab", "unclosed group, at character 1 of the pattern (ab"),
        ("x(a)\\1", "backreferences are not supported, at character 5 of the pattern x(a)\\1; repeat the pattern"),
        ("a(?=b)", "is not supported, at character 2 of the pattern a(?=b); leave out (?=...)"),
        ("a{2,1}", "the start must be <= the end, at character 2 of the pattern a{2,1}"),
        (r"\bfoo", r"; leave out \b"),
    ],
)
def test_a_regex_is_refused_with_the_cause_and_the_character(value: str, words: str) -> None:
    assert words in cause("regex", value)


def test_a_pattern_of_a_schema_is_refused_with_the_cause() -> None:
    message = cause("schema", '{"type": "string", "pattern": "ab["}')
    assert message == "unclosed character class, at character 3 of the pattern ab["


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('start: "a', "line 1, column 10: lexer error; a text stands in double quotes"),
        ('start: "a" b', 'line 1, column 8: unknown name: "b"'),
        ("start: /(a/", "line 1, column 8: unclosed group, at character 1 of the pattern (a"),
        ('begin: "a"', "no start rule found; name the first rule `start`"),
    ],
)
def test_a_grammar_is_refused_with_the_line(value: str, words: str) -> None:
    assert cause("grammar", value).startswith(words)


def test_a_token_named_in_a_grammar_is_refused_without_the_names_that_the_driver_made_up() -> None:
    library = 'at 1(8): unknown special token: "<think>"; following special tokens are available: \U0010ffff7, <x>'
    message = explain(library, "grammar")
    assert message.startswith('line 1, column 8: unknown special token: "<think>"; a reply has ordinary tokens only')


def test_a_parenthesis_can_be_escaped() -> None:
    assert cause("regex", r"\(") == ""
    assert cause("schema", r'{"type": "string", "pattern": "^\\($"}') == ""


def test_an_error_of_another_form_loses_nothing_of_its_first_line() -> None:
    assert explain("Invalid type: strin\n", "schema") == "Invalid type: strin"
    assert explain("regex parse error:\nno drawing", "regex") == "regex parse error:"
