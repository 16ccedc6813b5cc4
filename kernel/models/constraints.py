"""Checks the constraint and stop strings of a call before a driver gets the call, and the reply after it was generated.

Used by `calls.py`. It never decides whether a schema, a regex or a grammar can be enforced: the driver does.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ipc.codec import UNDECODABLE
from ipc.errors import InvalidCall, InvalidConstraint, InvalidReply
from ipc.syscalls import Completion, Constraint, Sampling
from kernel.models import cut_replies

MAX_LENGTH = 1_000_000  # characters of a constraint
MAX_STOPS = 128  # stop strings of a call: the driver looks for each of them after each token
MAX_STOP_LENGTH = 10_000  # characters of all stop strings together


def check(sampling: Sampling) -> None:
    """Check the constraint and the stop strings of `sampling`. Raises `InvalidConstraint` or `InvalidCall`."""
    _check_stops(sampling.stop)
    constraint = sampling.constraint
    if constraint is None:
        return
    kind, value = constraint.kind, constraint.value
    if not value.strip():
        raise InvalidConstraint(f"an empty {kind} allows no reply")
    if len(value) > MAX_LENGTH:
        raise InvalidConstraint(f"a {kind} of {len(value)} characters is longer than {MAX_LENGTH}")
    if kind in ("schema", "choices"):
        _parse(constraint)
        if sampling.stop:
            raise InvalidConstraint(
                f"stop strings would cut a reply that has to match the {kind}; remove the stop strings or the {kind}"
            )


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidCall(f"{len(stops)} stop strings in one call; at most {MAX_STOPS} are allowed")
    if (length := sum(map(len, stops))) > MAX_STOP_LENGTH:
        raise InvalidCall(f"the stop strings have {length} characters together; at most {MAX_STOP_LENGTH} are allowed")


def check_replies(completions: Sequence[Completion], sampling: Sampling) -> None:
    """Check that a reply is complete. Raises `InvalidReply` if none is: one that was cut does not lose the others."""
    errors = []
    for completion in completions:
        try:
            check_reply(completion, sampling)
        except InvalidReply as error:
            errors.append(error)
    if len(errors) == len(completions):
        raise errors[0]


def check_reply(completion: Completion, sampling: Sampling) -> None:
    """Check that a reply is complete. Raises `InvalidReply`.

    A text that was cut may be complete by chance. For a schema or choices the kernel can tell. For a regex or a grammar
    only the driver could, so such a reply is not checked.
    """
    constraint, text = sampling.constraint, completion.text
    if constraint is None or not cut_replies.is_cut(completion) or constraint.kind not in ("schema", "choices"):
        return
    if constraint.kind == "choices":
        complete = text in _parse(constraint)
    else:
        try:
            msgspec.json.decode(text)
            complete = True
        except UNDECODABLE:
            complete = False
    if not complete:
        raise InvalidReply(
            f"the reply does not match the {constraint.kind}: it was cut "
            f"{cut_replies.cause(completion, sampling.max_tokens)}",
            text=text,
        )


def _parse(constraint: Constraint) -> dict[str, object] | list[str]:
    """Parse the JSON of a schema or of choices. Raises `InvalidConstraint`."""
    kind, value = constraint.kind, constraint.value
    try:
        if kind == "choices":
            choices = msgspec.json.decode(value, type=list[str])
            if not choices or "" in choices:
                raise InvalidConstraint("choices must be a list of at least one text, none of them empty")
            return choices
        return msgspec.json.decode(value, type=dict[str, object])
    except UNDECODABLE as error:
        what = "a JSON list of texts" if kind == "choices" else "a JSON object"
        advice = r"; JSON writes the backslash of a pattern twice: \\(" if "invalid escape" in str(error) else ""
        raise InvalidConstraint(f"{kind} must be {what}: {error}{advice}") from None
