"""Sizes of memory in words, for messages that people read."""

from __future__ import annotations


def show_size(size: float) -> str:
    """Such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
