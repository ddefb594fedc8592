"""``proa group``: which channel machines follow."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from proa.cli import options

EPILOG = """\
A machine says its group in update.conf (GROUP=web). A group that the server does not know gets the
channel of its name, and if there is none, no updates.

examples:
  proa group set web --channel beta
  proa group list --json

exit status: 0 done; 2 usage; 7 no such channel; 9 the database cannot be used
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "group",
        help="say which channel a group of machines follows",
        description="Show and change the channels that groups of machines follow.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    change = actions.add_parser("set", help="make a group follow a channel")
    change.add_argument("group")
    change.add_argument("--channel", required=True)
    show = actions.add_parser("list", help="show all groups")
    for action in (change, show):
        options.add_database(action)
        options.add_json(action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.server import admin

    if args.action == "set":
        group = admin.set_group(args.db, args.group, args.channel, datetime.now(UTC))
        if args.json:
            print(json.dumps({"name": group.name, "channel": group.channel}, indent=1))
        else:
            print(f"Group {group.name} now follows channel {group.channel}.")
        return 0
    groups = admin.list_groups(args.db)
    if args.json:
        found = [{"name": g.name, "channel": g.channel, "machines": n} for g, n in groups]
        print(json.dumps(found, indent=1))
    else:
        rows = [(g.name, g.channel, str(n)) for g, n in groups]
        print(options.table(("GROUP", "CHANNEL", "MACHINES"), rows))
    return 0
