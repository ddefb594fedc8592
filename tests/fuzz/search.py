"""Coverage-guided fuzzing of the readers of payloads, by atheris (libFuzzer).

atheris is not among Proa's own dependencies: it has wheels for few platforms, and only this file
needs it.

    python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris
    PYTHONPATH=src:tests python -m fuzz.readers /tmp/corpus      # in Proa's environment
    PYTHONPATH=src:tests /tmp/fuzz/bin/python -m fuzz.search /tmp/corpus \\
        -max_total_time=600 -timeout=60 -rss_limit_mb=1024 -max_len=40000

What is found goes to the first directory. ``-merge=1 tests/fuzz/corpus /tmp/corpus`` in place of
the last line adds the smallest inputs that reach anything new to the corpus that is kept.
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
