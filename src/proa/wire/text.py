"""Text from others, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with U+FFFD for what could steer a terminal or break a line of a log."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
