"""What the fuzzer found: no reader stumbles over any of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import readers

CORPUS = sorted(readers.CORPUS.iterdir())


def test_the_corpus_reaches_every_reader_both_ways() -> None:
    ended = {readers.one(file.read_bytes()) for file in CORPUS}
    for reader in ("_head", "_blob", "_group", "_plan", "_patch", "_erofs"):
        assert any(end.startswith(f"{reader}: ") and end.endswith("Error") for end in ended)
    for reader in ("_head", "_plan", "_patch", "_erofs"):
        assert f"{reader}: read" in ended


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name[:8])
def test_no_reader_stumbles(file: Path) -> None:
    # Anything but a reader's own exceptions goes through, and so do its assertions.
    assert readers.one(file.read_bytes())
