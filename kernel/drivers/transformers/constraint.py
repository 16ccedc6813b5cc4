"""Constrained generation: masks the tokens that may come next, so that a reply fits its constraint by construction.

llguidance compiles grammars in worker threads, off the step loop. A sequence does not run until it has its `Matcher`;
the engine asks the matcher before each token. The library's own limits bound the time and memory that a grammar and a
mask take. This module never chooses a token.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ipc.errors import InvalidConstraint, MissingExtra, brief, text_of
from ipc.syscalls import Constraint
from kernel.drivers.transformers.grammar_errors import explain

COMPILER_THREADS = 2  # if a grammar occupies one thread beyond its time limit, the other one is still free
COMPILE_TIMEOUT = 5.0  # seconds that a grammar may take to compile


class Matcher:
    """The position of one sequence in its grammar. `ended`: whether no token can follow."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """A mask [vocabulary], true for tokens that may come next. Raises `InvalidConstraint` if the library fails."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        bits = np.unpackbits(words, count=self._vocabulary, bitorder="little")  # 500 times as fast as shifts in torch
        return torch.from_numpy(bits.view(bool))

    def accept(self, token: int) -> None:
        """Advance by `token`. Raises `InvalidConstraint` if the library fails."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidConstraint(f"the grammar failed: {_first_line(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles constraints for `hf`, a tokenizer of transformers."""

    def __init__(self, hf: Any, ends: frozenset[int], vocabulary: int) -> None:
        self._hf = hf
        self._ends = sorted(ends)
        self._vocabulary = vocabulary
        self._pool = ThreadPoolExecutor(COMPILER_THREADS, "grammar")
        self._tokenizer: Future[Any] | None = None

    def compile(self, constraint: Constraint) -> Future[Matcher]:
        """Start to compile `constraint`. The future raises `InvalidConstraint` or `MissingExtra`."""
        if self._tokenizer is None:
            self._tokenizer = self._pool.submit(self._load)
        return self._pool.submit(self._compile, constraint, self._tokenizer)

    def _load(self) -> Any:
        try:
            import llguidance.hf
        except ImportError as error:
            raise MissingExtra("constraints need llguidance: pip install 'llmosd[local]'", extra="local") from error
        return llguidance.hf.from_tokenizer(self._hf, n_vocab=self._vocabulary, eos_token=self._ends)

    def _compile(self, constraint: Constraint, tokenizer: Future[Any]) -> Matcher:
        # The first job of the pool loads the tokenizer, so this waits only for a job that already runs.
        vocabulary = tokenizer.result()
        from llguidance import LLMatcher

        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError) as error:
            raise InvalidConstraint(
                f"not a valid constraint of kind {constraint.kind}: {explain(text_of(error), constraint.kind)}"
            ) from None
        try:
            matcher = LLMatcher(vocabulary, grammar, log_level=0)
            matcher.compute_bitmask()  # an impossible grammar fails here; also, the first mask takes longest
        except BaseException as error:  # also a panic of llguidance, which is no `Exception`
            raise InvalidConstraint(
                f"this {constraint.kind} cannot be used: the grammar compiler fails ({brief(error)}); simplify it"
            ) from None
        if matcher.is_error():
            raise InvalidConstraint(
                f"this {constraint.kind} cannot be used: {explain(matcher.get_error(), constraint.kind)}"
            )
        return Matcher(matcher, self._vocabulary)


def _grammar(constraint: Constraint) -> str:
    """The constraint as a grammar of llguidance. Raises `ValueError` if it is malformed."""
    from llguidance import LLMatcher

    value = constraint.value
    if constraint.kind == "schema":
        return str(LLMatcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": False}))
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(value))
    if constraint.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(value))
    choices = json.loads(value)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("expected a JSON list of at least one string")
    return str(LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices)))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
