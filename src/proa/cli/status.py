"""``proa status``: the machine and its update server, seen from outside, and what it says."""

from __future__ import annotations

import argparse
import json

EPILOG = """\
examples:
  proa status
  proa status --json

exit status: 0 the machine runs; 1 there is none; 4 it is there but does not run
"""

NOT_RUNNING = 4


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "status",
        help="the machine, its version and its update server",
        description="Show the machine of `proa up`: outside (QEMU, ports) and inside (proactl).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="proa", help="the machine's name (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.cli import progress
    from proa.lab import process, up
    from proa.lab.shell import ShellError
    from proa.lab.site import Site

    home = Site(paths.data_dir(), paths.cache_dir())
    known = up.existing(home, args.name, running=False)
    record = known.record
    seconds = up.uptime(known)
    server_runs = record.server is not None and process.is_running(record.server)
    inside: str | None = None
    if known.is_running:
        with known.shell(home.ssh_key) as remote:
            try:
                inside = remote.run("sudo proactl status" + (" --json" if args.json else ""))
            except ShellError as error:
                inside = None if error.is_connection else error.output
    if args.json:
        print(
            json.dumps(
                {
                    "name": record.name,
                    "running": known.is_running,
                    "uptime": None if seconds is None else round(seconds),
                    "firmware": record.firmware,
                    "accelerator": record.accelerator,
                    "ssh_port": record.ssh_port,
                    "application_port": record.application_port,
                    "server_port": record.server_port,
                    "server_running": server_runs,
                    "directory": str(known.directory),
                    "proactl": _parsed(inside),
                }
            )
        )
        return 0 if known.is_running else NOT_RUNNING
    if seconds is None:
        print(f"machine      {record.name}: not running (start it with: ./proa up)")
    else:
        print(f"machine      {record.name}: up {progress.duration(seconds)}")
    print(f"made from    {record.version}")
    print(f"hardware     {up.describe(record)}")
    print(f"ssh          127.0.0.1:{record.ssh_port}")
    print(f"port 8080    http://127.0.0.1:{record.application_port}/")
    print(
        f"updates      http://127.0.0.1:{record.server_port}/v1/update/"
        + ("" if server_runs else " (not running; ./proa up starts it)")
    )
    print(f"directory    {known.directory}")
    if known.is_running:
        print(f"\n{inside if inside is not None else 'It does not answer by ssh yet.'}")
    return 0 if known.is_running else NOT_RUNNING


def _parsed(text: str | None) -> object:
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text
