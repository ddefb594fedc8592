"""``proa tour``: the whole story on a fresh machine, step by step with evidence."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proa.lab.tour import Result

EPILOG = """\
Builds releases, boots a machine of its own and lets it update, fail and come back. It touches
nothing of yours: keys, repository and machine are its own, and are removed at the end. About
twenty minutes under emulation, a few with KVM. Needs root for the builds.

examples:
  proa tour
  proa tour --json | jq -r 'select(.ok | not) | .error'
  proa tour --keep            leave repository, releases, disks and logs to look at

With --json there is one object a line for each step: name, title, ok, seconds, evidence (a list
of lines) and error.

exit status: 0 all steps held; 1 one did not, and those after it were not tried
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "tour",
        help="see a machine update, fail, and come back by itself",
        description="Tell the whole story on a fresh machine, each step with its evidence.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each step")
    parser.add_argument("--keep", action="store_true", help="keep the tour's files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.cli import progress
    from proa.lab import tour

    started = time.monotonic()
    with tour.stage(paths.cache_dir(), keep=args.keep) as told:
        for step in tour.STEPS:
            with progress.announced(step.title) as shown:
                told.report = shown.report
                result = tour.perform(told, step)
            _show(result, as_json=args.json)
            if not result.ok:
                print("\nThe machine's last words on its serial port:", file=sys.stderr)
                for line in tour.serial_tail(told):
                    print(f"  {line}", file=sys.stderr)
                break
        home = told.site.home
    took = progress.duration(time.monotonic() - started)
    if args.keep:
        print(f"Everything is kept in {home}", file=sys.stderr)
    if not result.ok:
        print(f"proa: the tour broke at step {result.name} after {took}", file=sys.stderr)
        return 1
    print(f"All {len(tour.STEPS)} steps held, in {took}.", file=sys.stderr)
    return 0


def _show(result: Result, *, as_json: bool) -> None:
    from proa.cli import progress

    if as_json:
        fields = ("name", "title", "ok", "seconds", "evidence", "error")
        document = {name: getattr(result, name) for name in fields}
        document["seconds"] = round(result.seconds, 1)
        print(json.dumps(document, ensure_ascii=False), flush=True)
        return
    mark = progress.DONE if result.ok else progress.FAILED
    print(f"{mark} {result.title}  ({progress.duration(result.seconds)})")
    for line in (*result.evidence, *result.error.splitlines()):
        print(f"    {line}")
    sys.stdout.flush()
