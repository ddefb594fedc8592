"""``proa keys``: the keys that releases are signed with."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from proa import paths
from proa.cli import options

EPILOG = """\
root and targets are the offline keys: keep them away from the server, best on a medium that lies
in a drawer. snapshot and timestamp are the online keys: `proa serve --online-keys` signs freshness
with them. root.json is the trust anchor to build images with (`proa build --root`).

examples:
  proa keys init                           make all four, and root.json
  proa keys rotate timestamp               replace one that may have leaked ...
  proa repo resign                         ... and let machines know
  proa keys renew && proa repo resign      a new root before the old one expires

exit status: 0 done; 2 usage; 3 keys are missing, unreadable or exist already
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "keys",
        help="make and rotate the keys that sign releases",
        description="Make, show and rotate the keys that releases are signed with.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    init = actions.add_parser("init", help="make all keys and the first root")
    rotate = actions.add_parser("rotate", help="replace one key and sign a new root")
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp"))
    renew = actions.add_parser("renew", help="sign a new root with the same keys")
    show = actions.add_parser("list", help="show the keys' ids and when the root expires")
    for action in (init, rotate, renew, show):
        _add_directory(action)
        options.add_json(action)
    for action in (init, rotate, renew):
        options.add_passphrase(action)
        action.add_argument(
            "--expires-root",
            type=options.duration,
            default=options.duration("365d"),
            metavar="TIME",
            help="how long the root is good for (default: 365d)",
        )
    parser.set_defaults(run=run)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        default=paths.data_dir() / "keys",
        metavar="DIR",
        help="the key directory (default: $PROA_HOME/keys)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.factory import keys

    now = datetime.now(UTC)
    if args.action == "list":
        return _list(args.dir, args.json)
    secret = options.passphrase(args.passphrase_file)
    if args.action == "init":
        root = keys.init(args.dir, now, passphrase=secret, lifetime=args.expires_root)
        if not args.json:
            print(f"Made the keys in {args.dir}. Back them up: without them no machine can update.")
            print(f"The trust anchor for images is {root}.")
            return 0
    elif args.action == "rotate":
        keys.rotate(args.dir, args.role, now, passphrase=secret, lifetime=args.expires_root)
    else:
        keys.renew(args.dir, now, passphrase=secret, lifetime=args.expires_root)
    if args.json:
        return _list(args.dir, as_json=True)
    version = keys.roots(args.dir)[-1].signed.version
    what = f"Replaced the {args.role} key" if args.action == "rotate" else "Renewed the root"
    print(f"{what}: {args.dir}/roots/{version}.root.json.")
    print("Machines learn of it with the next `proa publish`, or now with `proa repo resign`.")
    return 0


def _list(directory: Path, as_json: bool) -> int:
    from proa.factory import keys

    root = keys.roots(directory)[-1].signed
    found = keys.describe(directory)
    if as_json:
        document = {
            "root_version": root.version,
            "root_expires": root.expires.isoformat(),
            "root": str(directory / "root.json"),
            "keys": [
                {"role": k.role, "id": k.key_id, "file": str(k.file) if k.file else None}
                for k in found
            ],
        }
        print(json.dumps(document, indent=1))
        return 0
    rows = [(k.role, k.key_id[:16], str(k.file or "not here")) for k in found]
    print(options.table(("ROLE", "KEY", "FILE"), rows))
    print(f"Root {root.version} expires {root.expires:%Y-%m-%d}.")
    return 0
