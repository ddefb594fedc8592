#!/usr/bin/env python3
"""Coverage-guided fuzzing of the readers of payloads, by atheris (libFuzzer).

atheris is not among Proa's own dependencies: it has wheels for few platforms, and only this file
needs it.

    python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris
    PYTHONPATH=src:tests python -m fuzz.readers /tmp/corpus      # in Proa's environment
    export PYTHONPATH=$PWD/src:$PWD/tests PATH=/tmp/fuzz/bin:$PATH
    tests/fuzz/search.py /tmp/corpus -max_total_time=600 -timeout=60 -rss_limit_mb=1024

What is found goes to the first directory. ``tests/fuzz/search.py -merge=1 tests/fuzz/corpus
/tmp/corpus`` adds the smallest inputs that reach anything new to the corpus that is kept.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["proa.wire"]):
    from fuzz import readers


def one(data: bytes) -> None:
    readers.one(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
