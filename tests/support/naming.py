"""The names of parametrised tests. Tests use it as `ids`."""

from __future__ import annotations

import re


def without_addresses(value: object) -> str:
    """The value's repr, the same in each process: test runs on several cores compare the names of their tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
