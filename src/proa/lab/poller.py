"""Asking an HTTP server over and over, to know later whether it was ever away."""

from __future__ import annotations

import itertools
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

# Seconds between two questions, and until an answer counts as missing.
_PAUSE = 0.5
_PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """When it was asked and answered (seconds, monotonic clock), and whether as it should be."""

    asked: float
    answered: float
    good: bool


@dataclass(frozen=True)
class Summary:
    """What came of it: ``longest_gap`` is the longest time in seconds between good answers."""

    asked: int
    missed: int
    longest_gap: float

    def __str__(self) -> str:
        return (
            f"{self.asked - self.missed} of {self.asked} requests answered, "
            f"longest gap {self.longest_gap:.1f} s"
        )


def summarise(answers: list[Answer]) -> Summary:
    """Count answers, and find the longest time without a good one."""
    good = [answer.answered for answer in answers if answer.good]
    edges = [answers[0].asked, *good, answers[-1].answered] if answers else []
    gaps = [later - earlier for earlier, later in itertools.pairwise(edges)]
    return Summary(len(answers), len(answers) - len(good), max(gaps, default=0.0))


class Poller:
    """Asks ``url`` in the background while the ``with`` body runs; ``text`` must be in the page."""

    def __init__(self, url: str, text: str) -> None:
        self._url = url
        self._text = text
        self._answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def summary(self) -> Summary:
        """What came of it so far."""
        return summarise(list(self._answers))

    def _run(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            good = self._text in fetch(self._url, _PATIENCE)
            self._answers.append(Answer(asked, time.monotonic(), good))
            self._stop.wait(_PAUSE)


def fetch(url: str, timeout: float = 10.0) -> str:
    """Return the page at ``url``, or "" if there is none."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 (our own URL)
            page: bytes = answer.read(1 << 20)
            return page.decode(errors="replace")
    except (urllib.error.URLError, OSError):
        return ""
