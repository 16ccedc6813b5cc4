"""Says in one line why a program cannot be loaded or a process cannot start.

Used for tasks and children that wait for their programs. It never raises for an odd error.
"""

from __future__ import annotations

import re
from os.path import basename

from ipc.errors import LlmosError, UnknownProgram, brief
from ipc.foreign import bounded, class_name

MAX_REASON = 400  # characters
PLACE = re.compile(r'File "([^"]+)", line (\d+)')


def one_line(error: Exception) -> str:
    """The reason for `error`; of a traceback the first line, the last line, and the place in the file."""
    if not isinstance(error, LlmosError):
        return brief(error)
    if type(error) is UnknownProgram and isinstance(broken := error.data.get("broken"), list) and broken:
        return bounded(f"no program {error.data.get('program')!r}; {'; '.join(map(str, broken))}", MAX_REASON)
    first, *more = error.message.strip().splitlines() or [class_name(error)]
    if not more:
        return bounded(first, MAX_REASON)
    places = PLACE.findall(error.message)
    last = more[-1].strip()
    file = basename(places[-1][0]) if places else ""
    place = f" ({file}:{places[-1][1]})" if file and file not in last else ""
    return bounded(f"{first.rstrip(':')}: {last}{place}", MAX_REASON)
