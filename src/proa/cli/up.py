"""``proa up``: a running machine, from nothing."""

from __future__ import annotations

import argparse
import sys
import time

EPILOG = """\
The first time this builds the system (minutes); after that everything unchanged is used again.
The machine goes on after this command has ended; `proa down` removes it. Interrupting leaves
nothing running and nothing half-made. Needs root for the build.

examples:
  proa up
  proa up --bios --memory 1024
  proa up --json

exit status: 0 the machine runs; 1 it does not (the message says why)
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "up",
        help="build the system, boot a machine, say how to get into it",
        description="Build Proa, publish it, start an update server, and boot a machine in QEMU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="proa", help="the machine's name (default: %(default)s)")
    parser.add_argument("--bios", action="store_true", help="boot by BIOS instead of UEFI")
    parser.add_argument(
        "--memory", type=int, default=512, metavar="MB", help="memory (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="describe the machine as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    import json

    from proa import paths
    from proa.cli import progress
    from proa.lab import up
    from proa.lab.qemu import Firmware
    from proa.lab.site import Site

    started = time.monotonic()
    wish = up.Wish(args.name, Firmware.BIOS if args.bios else Firmware.UEFI, args.memory)
    home = Site(paths.data_dir(), paths.cache_dir())
    known, ran = up.up(home, wish, progress.step)
    record = known.record
    if args.json:
        print(
            json.dumps(
                {
                    "name": record.name,
                    "version": record.version,
                    "firmware": record.firmware,
                    "accelerator": record.accelerator,
                    "ssh_port": record.ssh_port,
                    "application_port": record.application_port,
                    "server_port": record.server_port,
                    "directory": str(known.directory),
                    "ran_already": ran,
                }
            )
        )
        return 0
    took = progress.duration(time.monotonic() - started)
    name = "" if args.name == "proa" else f" --name {args.name}"
    print(
        f"Machine {args.name!r} runs already." if ran else f"Machine {args.name!r} runs ({took})."
    )
    print(
        f"""
  ./proa ssh{name}                    a shell on it
  ./proa ssh{name} proactl status     what it runs and where its updates come from
  ./proa console{name}                its serial console
  ./proa status{name}                 the machine and its update server, from outside
  ./proa down{name}                   remove it

  Port 8080 of the machine is http://127.0.0.1:{record.application_port}/ here."""
    )
    sys.stdout.flush()
    return 0
