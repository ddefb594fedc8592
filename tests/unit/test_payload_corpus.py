"""What the fuzzer found: no reader stumbles over any of it."""

from __future__ import annotations

from fuzz import readers


def test_no_reader_stumbles_over_the_corpus() -> None:
    # Anything but a reader's own exceptions goes through, and so do the readers' assertions.
    ended = {readers.one(file.read_bytes()) for file in sorted(readers.CORPUS.iterdir())}
    for reader in ("_head", "_blob", "_group", "_plan", "_patch", "_erofs"):
        assert any(end.startswith(f"{reader}: ") and end.endswith("Error") for end in ended)
        assert f"{reader}: read" in ended
