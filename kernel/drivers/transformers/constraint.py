"""Constrained generation: masks the tokens that may come next, so that a reply fits its constraint by construction.

llguidance compiles grammars in worker threads, off the step loop. A sequence does not run until it has its `Matcher`;
the engine asks the matcher before each token. The library's own limits bound the time and memory that a grammar and a
mask take. A constrained reply consists of ordinary tokens: a special token is never text, even if the constraint
contains its name. This module never chooses a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from ipc.errors import InvalidConstraint, MissingExtra, brief, text_of
from ipc.syscalls import Constraint
from kernel.drivers.transformers import tokenizer_json
from kernel.drivers.transformers.grammar_errors import explain

COMPILER_THREADS = 2  # if a grammar occupies one thread beyond its time limit, the other one is still free
COMPILE_TIMEOUT = 5.0  # seconds that a grammar may take to compile
LEXER_FUEL = 20_000_000  # the library's measure of the work to read a list of texts; its default takes some 5,000 texts
# In a grammar: a comment, a text, or a regular expression, which is the last group.
LARK = re.compile(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|/((?:\\.|[^/\\\n])+)/')


class Vocabulary(NamedTuple):
    """The tokens of a model for llguidance: its `tokenizer`, and one bit for each token.

    `ordinary`: the tokens that are text, as bits. `ends`: the ids that end a reply. `size`: how many logits the model
    has for a token. `unwritable`: a character that the tokenizer takes for a space, or "".
    """

    tokenizer: Any
    ordinary: np.ndarray[Any, np.dtype[np.uint8]]
    ends: list[int]
    size: int
    unwritable: str


class Matcher:
    """The position of one sequence in its grammar. `ended`: whether no token can follow."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """A mask [vocabulary], true for tokens that may come next: ordinary tokens, and ends where the reply is whole.

        Raises `InvalidConstraint` if the library fails, or if the model has no such token.
        """
        _, ordinary, ends, size, _ = self._vocabulary
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)  # with some more bits at its end
        self._check()
        words = mask[: len(ordinary)] & ordinary
        bits = np.unpackbits(words, count=size, bitorder="little")  # 500 times as fast as shifts in torch
        if ends and self._matcher.is_accepting():
            bits[ends] = 1
        if not bits.any():
            raise InvalidConstraint(
                "no token of the model can continue this reply: its vocabulary lacks a character that the constraint "
                "demands here; remove that character, or use another model"
            )
        return torch.from_numpy(bits.view(bool))

    def accept(self, token: int) -> None:
        """Advance by `token`. Raises `InvalidConstraint` if the library fails."""
        self._matcher.consume_token(token)
        self._check()

    def may_end(self) -> bool:
        """Whether the text so far is a whole reply."""
        return bool(self._matcher.is_accepting())

    def bytes_of(self, token: int) -> bytes:
        """The bytes that `token` adds to the reply."""
        return bytes(self._vocabulary.tokenizer.decode_bytes([token]))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidConstraint(f"the grammar failed: {_first_line(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles constraints for `hf`, a tokenizer of transformers."""

    def __init__(self, hf: Any, ends: frozenset[int], vocabulary: int) -> None:
        self._hf = hf
        self._ends = sorted(end for end in ends if end < vocabulary)
        self._size = vocabulary
        self._pool = ThreadPoolExecutor(COMPILER_THREADS, "grammar")
        self._vocabulary: Future[Vocabulary] | None = None

    def compile(self, constraint: Constraint) -> Future[Matcher]:
        """Start to compile `constraint`. The future raises `InvalidConstraint` or `MissingExtra`."""
        if self._vocabulary is None:
            self._vocabulary = self._pool.submit(self._load)
        return self._pool.submit(self._compile, constraint, self._vocabulary)

    def when_loaded(self, action: Callable[[], None]) -> None:
        """Call `action` once the vocabulary is loaded, on any thread: the first constraint waits for it for seconds."""
        assert self._vocabulary is not None
        self._vocabulary.add_done_callback(lambda _: action())

    def _load(self) -> Vocabulary:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise MissingExtra("constraints need llguidance: pip install 'llmosd[local]'", extra="local") from error
        try:
            described = tokenizer_json.description(self._hf)
            hidden = tokenizer_json.hidden_ids(described, self._ends)
            text = json.dumps(tokenizer_json.ordinary(described, hidden, self._size))
            tokenizer = LLTokenizer(text, n_vocab=self._size, eos_token=self._ends)
        except ValueError as error:
            raise InvalidConstraint(f"the tokenizer of this model allows no constraints: {brief(error)}") from error
        bits = np.ones(self._size, np.uint8)
        bits[[token for token in hidden if token < self._size]] = 0
        return Vocabulary(
            tokenizer, np.packbits(bits, bitorder="little"), self._ends, self._size, tokenizer_json.space(described)
        )

    def _compile(self, constraint: Constraint, loading: Future[Vocabulary]) -> Matcher:
        # The first job of the pool loads the vocabulary, so this waits only for a job that already runs.
        vocabulary = loading.result()
        from llguidance import LLMatcher, LLParserLimits

        if vocabulary.unwritable and vocabulary.unwritable in _unescaped(constraint):
            raise InvalidConstraint(
                f"this {constraint.kind} contains {vocabulary.unwritable} (U+2581), which the tokenizer of this model "
                "takes for a space; remove that character, or use another model"
            )
        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError) as error:
            raise InvalidConstraint(
                f"not a valid constraint of kind {constraint.kind}: {explain(text_of(error), constraint.kind)}"
            ) from None
        try:
            fuel = LEXER_FUEL if constraint.kind in ("choices", "schema") else None  # only these can be lists of texts
            limits = LLParserLimits(initial_lexer_fuel=fuel)
            matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=limits)
            matcher.compute_bitmask()  # an impossible grammar fails here; also, the first mask takes longest
        except BaseException as error:  # also a panic of llguidance, which is no `Exception`
            raise InvalidConstraint(
                f"this {constraint.kind} cannot be used: the grammar compiler fails ({brief(error)}); simplify it"
            ) from None
        if matcher.is_error():
            raise InvalidConstraint(
                f"this {constraint.kind} cannot be used: {explain(matcher.get_error(), constraint.kind)}"
            )
        return Matcher(matcher, vocabulary)


def _unescaped(constraint: Constraint) -> str:
    """The value of `constraint`, in which no escape hides a character."""
    if constraint.kind in ("regex", "grammar"):
        return constraint.value
    try:
        return json.dumps(json.loads(constraint.value), ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""  # it will be refused for that


def _grammar(constraint: Constraint) -> str:
    """The constraint as a grammar of llguidance. Raises `ValueError` if it is malformed."""
    from llguidance import LLMatcher

    value = constraint.value
    if constraint.kind == "schema":
        return str(LLMatcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": False}))
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(_ascii(value)))
    if constraint.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(LARK.sub(_with_ascii_classes, value)))
    choices = json.loads(value)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("expected a JSON list of at least one string")
    # A regular expression, because a grammar has at most 2,000 alternatives.
    return str(LLMatcher.grammar_from_regex("|".join(map(_literal, choices))))


def _ascii(regex: str) -> str:
    r"""`regex` with `\d`, `\w` and `\s` for characters of ASCII only, as with Python's `re.ASCII`."""
    from llguidance import regex_to_lark

    return str(regex_to_lark(regex, "dws"))


def _with_ascii_classes(found: re.Match[str]) -> str:
    return f"/{_ascii(found[1])}/" if found[1] else found[0]


def _literal(text: str) -> str:
    """A regular expression for `text` itself."""
    return "".join(letter if letter.isalnum() else f"\\u{{{ord(letter):x}}}" for letter in text)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
