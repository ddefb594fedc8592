"""``proa test``: every test of the checkout."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

EPILOG = """\
Static checks first (ruff, mypy, import-linter), then pytest: unit, integration, and the machine
tests, which build releases and boot them in QEMU. --quick leaves the machine tests out: seconds
instead of half an hour. Arguments after -- go to pytest.

examples:
  proa test
  proa test --quick
  proa test --quick -- -k omaha -x

exit status: 0 all is well; 1 something is not
"""

STATIC = (
    ("ruff check", ["-m", "ruff", "check", "--no-cache", "."]),
    ("mypy --strict", ["-m", "mypy", "--cache-dir={cache}/mypy"]),
    (
        "import-linter",
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"],
    ),
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "test",
        help="run every test",
        description="Run the static checks and all tests of this checkout.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="without the machine tests")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST-ARGUMENT")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.cli import progress

    checkout = Path(__file__).parents[3]
    cache = paths.cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    good = True
    for name, arguments in STATIC:
        command = [sys.executable, *(part.format(cache=cache) for part in arguments)]
        with progress.announced(name):
            done = subprocess.run(
                command, cwd=checkout, capture_output=True, text=True, check=False
            )
        print(f"{progress.DONE if done.returncode == 0 else progress.FAILED} {name}", flush=True)
        if done.returncode:
            print(done.stdout + done.stderr, flush=True)
            good = False
    tests = ["tests/unit", "tests/integration"] + ([] if args.quick else ["tests/machine"])
    status = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}/pytest", *tests, *args.pytest],
        cwd=checkout,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(cache / "hypothesis")},
        check=False,
    ).returncode
    print(f"Took {progress.duration(time.monotonic() - started)}.", file=sys.stderr)
    return 0 if good and status == 0 else 1
