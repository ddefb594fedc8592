"""``proa repo``: look after the repository."""

from __future__ import annotations

import argparse
import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from proa import paths
from proa.cli import options, publish

if TYPE_CHECKING:
    from proa.factory.repository import Listed

EPILOG = """\
Signatures expire so that nobody can hide news from machines by serving an old copy. The server
signs timestamp and snapshot by itself (`proa serve --online-keys`); targets must be signed again
every 90 days with the offline keys, which each publish does too.

examples:
  proa repo list
  proa repo refresh --online-keys keys/online    timestamp and snapshot, as a timer without a server
  proa repo resign                               everything, and roots from `proa keys`
  proa repo withdraw 1.2.0                       machines no longer accept it

exit status: 0 done; 2 usage; 3 keys are missing or not the repository's; 6 another command is
changing the repository; 7 no such version; 8 the repository is missing or damaged;
11 it cannot be written (disk full, permissions)
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "repo",
        help="list, sign and withdraw what is published",
        description="Look after the repository: list it, keep it signed, withdraw a version.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    show = actions.add_parser("list", help="versions, and when the signatures expire")
    refresh = actions.add_parser("refresh", help="sign timestamp and snapshot with online keys")
    refresh.add_argument(
        "--online-keys",
        type=Path,
        default=paths.data_dir() / "keys" / "online",
        metavar="DIR",
        help="the directory with snapshot.pem and timestamp.pem (default: $PROA_HOME/keys/online)",
    )
    resign = actions.add_parser("resign", help="sign everything, with all keys")
    withdraw = actions.add_parser("withdraw", help="take a version out of what machines accept")
    withdraw.add_argument("version")
    for action in (show, refresh, resign, withdraw):
        options.add_repo(action)
        options.add_json(action)
    for action in (resign, withdraw):
        options.add_keys(action)
    for action in (refresh, resign, withdraw):
        publish.add_lifetimes(action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.factory import repository

    if args.action == "list":
        return _list(args.repo, args.json)
    now = datetime.now(UTC)
    lifetimes = repository.Lifetimes(
        args.expires_targets, args.expires_snapshot, args.expires_timestamp
    )
    if args.action == "refresh":
        repository.refresh(args.repo, args.online_keys, now, lifetimes=lifetimes)
        what = "Signed timestamp and snapshot"
    else:
        secret = options.passphrase(args.passphrase_file)
        if args.action == "resign":
            repository.resign(args.repo, args.keys, now, lifetimes=lifetimes, passphrase=secret)
            what = "Signed everything"
        else:
            repository.withdraw(
                args.version, args.repo, args.keys, now, lifetimes=lifetimes, passphrase=secret
            )
            what = f"Withdrew {args.version}"
    if args.json:
        return _list(args.repo, as_json=True)
    print(f"{what}; {_expiries(args.repo)}.")
    return 0


def _list(directory: Path, as_json: bool) -> int:
    from proa.factory import repository

    versions = repository.list_versions(directory)
    signed = repository.signatures(directory)
    if as_json:
        document = {
            # Of a payload: name, size in bytes, source (root hash), origin (version), encoder.
            "versions": [dataclasses.asdict(v) for v in versions],
            "expires": {
                role: getattr(signed, role).isoformat()
                for role in ("root", "targets", "snapshot", "timestamp")
            },
        }
        print(json.dumps(document, indent=1))
        return 0
    print(options.table(("VERSION", "RELEASE", "FULL", "DELTAS"), [_row(v) for v in versions]))
    print(f"The signatures: {_expiries(directory)}.")
    return 0


def _row(listed: Listed) -> tuple[str, str, str, str]:
    if listed.withdrawn:
        return listed.version, "withdrawn", "", ""
    full = [options.size(p.size) for p in listed.payloads if not p.source]
    deltas = [
        f"{options.size(p.size)} from {p.origin or p.source[:16]}"
        for p in listed.payloads
        if p.source
    ]
    return listed.version, options.size(listed.size), "".join(full) or "-", ", ".join(deltas) or "-"


def _expiries(directory: Path) -> str:
    from proa.factory import repository

    signed = repository.signatures(directory)
    return (
        f"timestamp until {signed.timestamp:%Y-%m-%d %H:%M} UTC, "
        f"snapshot {signed.snapshot:%Y-%m-%d}, targets {signed.targets:%Y-%m-%d}, "
        f"root {signed.root:%Y-%m-%d}"
    )
