"""``proa publish``: a release into the repository, verified and signed."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from proa.cli import options

if TYPE_CHECKING:
    from proa.factory import repository

EPILOG = """\
Publishing does not update any machine: `proa channel set` does. A published version never changes;
publishing the same bytes again does nothing but add payloads that are missing. Interrupting leaves
the repository as it was.

Payloads are what makes updates small: a machine fetches the smallest that leads from what it has to
the release. The patches in them are kept in REPO/patches, so a second run is quick.

examples:
  proa publish release-1.1.0
  proa publish release-1.1.0 --repo /srv/proa --keys /media/safe/keys
  proa publish release-1.1.0 --deltas 10          machines as old as ten versions are served well
  proa publish release-1.1.0 --no-payloads        now; payloads by publishing once more
  proa publish release-1.1.0 --dry-run

exit status: 0 published, or there already; 1 a payload could not be made (nothing was published);
2 usage; 3 keys are missing or not the repository's; 4 the release is incomplete or altered; 5 the
version is there with other content; 6 another command is changing the repository; 8 the repository
is damaged or belongs to other keys; 9 a payload is damaged or leads to another release; 11 it
cannot be written (disk full, permissions)
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
    parser.add_argument(
        "--deltas",
        type=options.count,
        default=3,
        metavar="N",
        help="make payloads from the N latest older versions (default: 3)",
    )
    parser.add_argument(
        "--no-full", action="store_true", help="do not make the payload that needs no older version"
    )
    parser.add_argument("--no-payloads", action="store_true", help="make no payloads at all")
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
    from proa import paths
    from proa.cli import progress
    from proa.factory import cache, payload_set, repository

    lifetimes = repository.Lifetimes(
        args.expires_targets, args.expires_snapshot, args.expires_timestamp
    )
    now = datetime.now(UTC)
    publish = functools.partial(
        repository.publish,
        args.release,
        args.repo,
        args.keys,
        now,
        lifetimes=lifetimes,
        passphrase=options.passphrase(args.passphrase_file),
    )
    # All that can be wrong is said before the long work, and nobody sees the release without
    # its payloads.
    with progress.step(f"Checking {args.release}") as step:
        done = publish(dry_run=True, report=step.report)
    wanted = [] if args.no_payloads else _wanted(args, done.version)
    if not args.dry_run:
        with cache.scratch(paths.cache_dir()) as scratch:
            payloads = []
            for origin in wanted:
                with progress.step(_title(origin, done.version)) as step:
                    made = payload_set.make_for(
                        origin, args.release, args.repo, scratch, paths.cache_dir(), step.report
                    )
                    step.text += f": {options.size(made.stat().st_size)}"
                payloads.append(made)
            with progress.step(f"Publishing {args.release}") as step:
                done = publish(payloads=payloads, report=step.report)
                step.text = _outcome(done)
    else:
        print(_plan(done, wanted), file=sys.stderr)
    if args.json:
        document = {"version": done.version, "new": done.new, "files": dict(done.files)}
        document |= {"channels": list(done.channels), "payloads": dict(done.payloads)}
        document |= {"dry_run": args.dry_run}
        if args.dry_run:
            document["to_make"] = [_title(origin, done.version) for origin in wanted]
        print(json.dumps(document, indent=1))
    elif not args.dry_run:
        for channel in done.channels or ("CHANNEL",):
            print(f"  next: proa channel set {channel} {done.version}")
    return 0


def _wanted(args: argparse.Namespace, name: str) -> list[str]:
    """Return the versions to make payloads from; see :func:`payload_set.missing`."""
    from proa.factory import payload_set, repository
    from proa.wire.version import parse

    there = (args.repo / "metadata").is_dir()
    listed = repository.list_versions(args.repo) if there else []
    return payload_set.missing(parse(name), listed, args.deltas, not args.no_full)


def _title(origin: str, version: str) -> str:
    return f"Delta from {origin} to {version}" if origin else f"Full payload of {version}"


def _outcome(done: repository.Published) -> str:
    if done.new:
        return f"Published {done.version}"
    if done.payloads:
        return f"{done.version} was published before; added {', '.join(done.payloads)}"
    return f"{done.version} was published before, with the same content"


def _plan(done: repository.Published, wanted: Sequence[str]) -> str:
    made = f" {len(wanted)} payloads would be made." if wanted else ""
    if done.new:
        return f"{done.version} can be published; nothing was written.{made}"
    return f"{done.version} was published before, with the same content.{made}"
