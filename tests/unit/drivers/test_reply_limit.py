"""The limit of a reply: the bound of its call, the default, or the context; and the reason to end there."""

from __future__ import annotations

import pytest

from ipc.errors import ContextOverflow
from kernel.drivers.reply_limit import reply_limit


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "limit"),
    [
        (None, 10, (50, "length")),
        (None, 50, (50, "length")),
        (None, 51, (49, "context")),
        (None, 99, (1, "context")),
        (7, 10, (7, "length")),
        (90, 10, (90, "length")),
    ],
)
def test_the_smallest_limit_applies_and_names_itself(
    max_tokens: int | None, prompt: int, limit: tuple[int, str]
) -> None:
    assert reply_limit(max_tokens, default=50, prompt=prompt, context=100) == limit


@pytest.mark.parametrize(("max_tokens", "prompt"), [(None, 100), (91, 10), (1, 100)])
def test_a_reply_without_room_is_refused_with_all_numbers(max_tokens: int | None, prompt: int) -> None:
    with pytest.raises(ContextOverflow, match="context of 100 tokens") as caught:
        reply_limit(max_tokens, default=50, prompt=prompt, context=100)
    assert caught.value.data == {"prompt_tokens": prompt, "max_tokens": max_tokens or 1, "context": 100}
