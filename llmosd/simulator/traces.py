"""Reads arrival traces in the format of the Azure Public Dataset: a time, context tokens and generated tokens per call.

Used by experiments and tests. An error names the file and the line. It never writes a file.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from ipc.errors import InvalidWorkload
from llmosd.simulator.workload import WorkloadCall, WorkloadTask

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, scale: float = 1.0) -> list[WorkloadTask]:
    """Read a CSV file, plain or gzipped, as tasks of one call each.

    Token counts are multiplied by `scale`; a count below 1 becomes 1.

    Raises `InvalidWorkload` for a file that cannot be read, missing columns, bad values, and time that runs backwards.
    """
    if not 0 < scale < math.inf:
        raise InvalidWorkload(f"a scale of {scale:g}; give a number above 0, such as 0.1")
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            return _parse(str(path), file, scale)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidWorkload(f"{path} cannot be read: {reason}") from None


def _parse(name: str, file: TextIO, scale: float) -> list[WorkloadTask]:
    rows = csv.DictReader(file)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        found = ", ".join(rows.fieldnames or ()) or "none"
        raise InvalidWorkload(
            f"{name}: no column {', '.join(missing)}; found: {found}. A trace has the columns {', '.join(COLUMNS)}"
        )
    tasks: list[WorkloadTask] = []
    start = before = None
    for line, row in enumerate(rows, 2):
        try:
            time = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
            prompt, tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise InvalidWorkload(f"{name}, line {line}: {error}") from None
        if prompt < 0 or tokens < 0:
            raise InvalidWorkload(f"{name}, line {line}: a negative number of tokens")
        if before is not None and time < before:
            raise InvalidWorkload(
                f"{name}, line {line}: time runs backwards, to {row['TIMESTAMP']}; sort the file by TIMESTAMP"
            )
        start = time if start is None else start
        before = time
        call = WorkloadCall(prompt=max(round(prompt * scale), 1), tokens=max(round(tokens * scale), 1))
        tasks.append(WorkloadTask(arrival=time - start, calls=(call,)))
    if not tasks:
        raise InvalidWorkload(f"{name}: no rows below the header")
    return tasks


def merged(traces: Iterable[list[WorkloadTask]]) -> list[WorkloadTask]:
    """Several workloads as one; all of them start at time 0."""
    return sorted((task for tasks in traces for task in tasks), key=lambda task: task.arrival)
