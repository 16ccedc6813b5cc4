"""What all system calls share: their root and the types of common fields.

Imported by the other files of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

# A body from a socket stays encoded until its receiver reads it; one from the loop is any value.
if TYPE_CHECKING:
    Body = Any
else:
    Body = msgspec.Raw

Priority = Annotated[int, Meta(ge=-20, le=20)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Syscall(msgspec.Struct, array_like=True, tag_field="call"):
    """Common to all system calls. `returns` is the type of the answer."""

    returns: ClassVar[Any] = None
