"""``proa channel``: which version machines get."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from proa.cli import options

EPILOG = """\
A channel is a name that leads to a version. Machines of a group that follows it are offered that
version if it is newer than theirs, at their next check (at most 45 minutes or so later).

examples:
  proa channel set alpha 1.1.0
  proa channel set beta 1.1.0 --json
  proa channel set canary 1.1.0 --create
  proa channel list

exit status: 0 done; 2 usage; 7 no such version or channel; 8 the repository cannot be read; 9 the
database cannot be used; 12 the release was not made for this channel
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "channel",
        help="say which version machines get",
        description="Show and change the versions that channels lead to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    change = actions.add_parser("set", help="make a channel lead to a version")
    change.add_argument("channel")
    change.add_argument("version")
    change.add_argument("--create", action="store_true", help="make the channel if need be")
    change.add_argument(
        "--allow-downgrade",
        action="store_true",
        help="also offer it to machines that run a newer version",
    )
    change.add_argument(
        "--force", action="store_true", help="even if the release was not made for this channel"
    )
    options.add_repo(change)
    show = actions.add_parser("list", help="show all channels")
    for action in (change, show):
        options.add_database(action)
        options.add_json(action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.server import admin

    if args.action == "set":
        channel = admin.set_channel(
            args.db,
            args.repo,
            args.channel,
            args.version,
            datetime.now(UTC),
            create=args.create,
            allow_downgrade=args.allow_downgrade,
            force=args.force,
        )
        channels = [channel]
    else:
        channels = admin.list_channels(args.db)
    if args.json:
        found = [
            {"name": c.name, "version": c.version, "allow_downgrade": c.allow_downgrade}
            for c in channels
        ]
        print(json.dumps(found[0] if args.action == "set" else found, indent=1))
    elif args.action == "set":
        print(f"Channel {args.channel} now leads to {args.version}.")
    else:
        rows = [
            (c.name, c.version or "none yet", "downgrades too" if c.allow_downgrade else "")
            for c in channels
        ]
        print(options.table(("CHANNEL", "VERSION", ""), rows))
    return 0
