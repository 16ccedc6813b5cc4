"""The root of all system calls, and the types of fields that many of them have.

The other files of this folder import it. It defines no call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

# A body from a socket stays encoded until its receiver reads it. The body of an agent's call is any value.
if TYPE_CHECKING:
    Body = Any
else:
    Body = msgspec.Raw

Priority = Annotated[int, Meta(ge=-20, le=20)]  # 20 is the most urgent
Seconds = Annotated[float, Meta(ge=0)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # as SQLite and the signed integers of msgpack
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Syscall(msgspec.Struct, array_like=True, tag_field="call"):
    """The root of all system calls. `returns` is the type of the answer.

    `appended`: the number of last fields that a later version of llmosd added to a call that journals store. The
    fingerprint of a call leaves them out while they have their defaults, so that older journals replay.

    `page`: the most rows of one answer of a listing; 0 for any other call. Its docstring names the field by which a
    client asks for the next rows. A page with fewer rows is the last one. Texts in rows are shortened.
    """

    returns: ClassVar[Any] = None
    appended: ClassVar[int] = 0
    page: ClassVar[int] = 0
