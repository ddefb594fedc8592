"""Spoilt metadata and manifests: a machine believes what was signed, or nothing.

See ``fuzz.metadata``. ``PROA_MUTATIONS`` says how many cases to run; without it, what a few seconds
are enough for.
"""

from __future__ import annotations

import os
from pathlib import Path

from fuzz import metadata

CASES = int(os.environ.get("PROA_MUTATIONS", "500"))


def test_spoilt_metadata_is_refused_in_words_and_nothing_else_is_believed(tmp_path: Path) -> None:
    ended = metadata.run(metadata.make(tmp_path), range(CASES))
    assert sum(ended.values()) == CASES
    refused = sum(count for words, count in ended.items() if "refused" in words)
    # What was signed comes out where a machine has the file already, or the change was none.
    assert refused > CASES / 2
