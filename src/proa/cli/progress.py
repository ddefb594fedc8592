"""Telling a person what is going on: one line when a step starts, one when it ends.

All of it goes to stderr, so that a command's output can be piped. On a terminal the first line is
replaced by the second, and what the step reports in between is shown behind it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

RUNNING, DONE, FAILED = "▸", "✓", "✗"


@dataclass
class Step:
    """A step that is running. ``text`` may be changed to say at the end what came out."""

    text: str
    stream: TextIO

    def report(self, detail: str) -> None:
        """Show what the step is doing now; only a terminal shows it, since it is fleeting."""
        if self.stream.isatty():
            self._line(f"{RUNNING} {self.text}: {detail} …")

    def clear(self) -> None:
        """Take the fleeting line off the terminal."""
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _line(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{line[:width]}")
        self.stream.flush()


@contextlib.contextmanager
def step(text: str, stream: TextIO | None = None) -> Iterator[Step]:
    """Run the body as one step named ``text``; say when it starts, ends and how long it took."""
    started = time.monotonic()
    mark = FAILED
    with announced(text, stream) as current:
        try:
            yield current
            mark = DONE
        finally:
            seconds = time.monotonic() - started
            current.clear()
            print(f"{mark} {current.text}  ({duration(seconds)})", file=current.stream, flush=True)


@contextlib.contextmanager
def announced(text: str, stream: TextIO | None = None) -> Iterator[Step]:
    """Say that the step ``text`` runs while the body does; what came of it others will say."""
    current = Step(text, sys.stderr if stream is None else stream)
    if current.stream.isatty():
        current._line(f"{RUNNING} {text} …")
    else:
        print(f"{RUNNING} {text} …", file=current.stream, flush=True)
    try:
        yield current
    finally:
        current.clear()


def duration(seconds: float) -> str:
    """Return ``seconds`` as people say it: ``0.4 s``, ``31 s``, ``2 min 05 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s"
