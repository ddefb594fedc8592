#!/usr/bin/env python3
"""Coverage-guided fuzzing by atheris (libFuzzer): of the readers of payloads, or, with
``FUZZ=documents`` in the environment, of what a cloud hands over as user-data.

atheris is not among Proa's own dependencies: it has wheels for few platforms, and only this file
needs it. The documents need PyYAML beside it.

    python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris pyyaml
    PYTHONPATH=src:tests python -m fuzz.readers /tmp/corpus      # in Proa's environment
    export PYTHONPATH=$PWD/src:$PWD/tests PATH=/tmp/fuzz/bin:$PATH
    tests/fuzz/search.py /tmp/corpus -max_total_time=600 -timeout=60 -rss_limit_mb=1024

What is found goes to the first directory. ``tests/fuzz/search.py -merge=1 tests/fuzz/corpus
/tmp/corpus`` adds the smallest inputs that reach anything new to the corpus that is kept; that of
the documents is ``tests/fuzz/corpus-documents``.
"""

from __future__ import annotations

import importlib
import os
import sys

import atheris

INCLUDED = {"readers": "proa.wire", "documents": "proa.machine.cloudconfig"}

target = os.environ.get("FUZZ", "readers")
with atheris.instrument_imports(include=[INCLUDED[target]]):
    fuzzed = importlib.import_module(f"fuzz.{target}")


def one(data: bytes) -> None:
    fuzzed.one(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
