"""What a fuzzer needs, and searches that are too long for a test."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def write_seeds(seeds: Iterable[bytes]) -> None:
    """Write inputs to start from into the directory that the command line names."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (target / f"seed-{number:02}").write_bytes(seed)
