"""``proa publish``: a release into the repository, verified and signed."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from proa.cli import options

EPILOG = """\
Publishing does not update any machine: `proa channel set` does. A published version never changes;
publishing the same bytes again does nothing. Interrupting leaves the repository as it was.

examples:
  proa publish release-1.1.0
  proa publish release-1.1.0 --repo /srv/proa --keys /media/safe/keys
  proa publish release-1.1.0 --dry-run

exit status: 0 published, or there already; 2 usage; 3 keys are missing or not the repository's;
4 the release is incomplete or altered; 5 the version is there with other content; 6 another command
is changing the repository; 8 the repository is damaged or belongs to other keys;
11 it cannot be written (disk full, permissions)
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "publish",
        help="put a release into the repository, signed",
        description="Verify a release, copy it into the repository, and sign it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("release", type=Path, help="the directory that `proa build --out` made")
    options.add_repo(parser)
    options.add_keys(parser)
    add_lifetimes(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    options.add_json(parser)
    parser.set_defaults(run=run)


def add_lifetimes(parser: argparse.ArgumentParser) -> None:
    """Add ``--expires-targets``, ``--expires-snapshot`` and ``--expires-timestamp``."""
    for role, default in (("targets", "90d"), ("snapshot", "7d"), ("timestamp", "1d")):
        parser.add_argument(
            f"--expires-{role}",
            type=options.duration,
            default=options.duration(default),
            metavar="TIME",
            help=f"how long the {role} signature is good for (default: {default})",
        )


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.cli import progress
    from proa.factory import repository

    secret = options.passphrase(args.passphrase_file)
    with progress.step(f"Publishing {args.release}") as step:
        done = repository.publish(
            args.release,
            args.repo,
            args.keys,
            datetime.now(UTC),
            lifetimes=repository.Lifetimes(
                args.expires_targets, args.expires_snapshot, args.expires_timestamp
            ),
            passphrase=secret,
            dry_run=args.dry_run,
            report=step.report,
        )
        step.text = _outcome(done.version, done.new, args.dry_run)
    if args.json:
        document = {"version": done.version, "new": done.new, "files": dict(done.files)}
        document |= {"channels": list(done.channels), "dry_run": args.dry_run}
        print(json.dumps(document, indent=1))
    elif not args.dry_run:
        for channel in done.channels or ("CHANNEL",):
            print(f"  next: proa channel set {channel} {done.version}")
    return 0


def _outcome(version: str, new: bool, dry_run: bool) -> str:
    if not new:
        return f"{version} was published before, with the same content"
    return f"{version} can be published; nothing was written" if dry_run else f"Published {version}"
