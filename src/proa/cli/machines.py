"""``proa machines``: what every machine runs, and what went wrong on it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from proa.cli import options
from proa.wire.text import printable

if TYPE_CHECKING:
    from proa.server.admin import MachineReport

EPILOG = """\
examples:
  proa machines
  proa machines --json | jq '.[] | select(.last_failure) | {alias, last_failure}'

exit status: 0 done; 2 usage; 9 there is no database, or it cannot be used
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "machines",
        help="show what every machine runs, and what failed on it",
        description="Show all machines that have asked this server for updates.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_database(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.server import admin

    reports = admin.list_machines(args.db)
    if args.json:
        print(json.dumps([_document(report) for report in reports], indent=1))
    elif not reports:
        print("No machine has asked this server yet.")
    else:
        headings = ("MACHINE", "VERSION", "GROUP", "STATUS", "LAST SEEN")
        print(options.table(headings, [_row(report) for report in reports]))
        for report in reports:
            if failure := report.failure:
                what = f"{failure.version or 'an update'} failed at {failure.at}"
                print(printable(f"{_name(report)}: {what}: {report.failure_reason}"))
    return 0


def _name(report: MachineReport) -> str:
    return report.machine.alias or report.machine.machine_id


def _row(report: MachineReport) -> tuple[str, ...]:
    machine = report.machine
    cells = (_name(report), machine.version, machine.group_name, report.status, machine.last_seen)
    return tuple(printable(cell) for cell in cells)


def _document(report: MachineReport) -> dict[str, Any]:
    machine, failure = report.machine, report.failure
    return {
        "id": machine.machine_id,
        "alias": machine.alias,
        "version": machine.version,
        "next_version": machine.next_version,
        "group": machine.group_name,
        "board": machine.board,
        "ip": machine.ip,
        "boot_id": machine.boot_id,
        "status": machine.status.value,
        "status_version": machine.status_version,
        "status_text": report.status,
        "status_since": machine.status_since,
        "first_seen": machine.first_seen,
        "last_seen": machine.last_seen,
        "last_failure": failure
        and {
            "at": failure.at,
            "version": failure.version,
            "errorcode": failure.errorcode,
            "reason": report.failure_reason,
        },
    }
