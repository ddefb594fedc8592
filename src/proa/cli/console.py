"""``proa console``: the machine's serial console."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
Ctrl-] leaves the console; the machine goes on. Everything that was ever said there is in
serial.log in the machine's directory; --log prints it instead.

examples:
  proa console
  proa console --log | less -R
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "console",
        help="the machine's serial console",
        description="Join the serial console of the machine of `proa up`.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="proa", help="the machine's name (default: %(default)s)")
    parser.add_argument("--log", action="store_true", help="print what was said so far, and end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.lab import console, qemu, up
    from proa.lab.site import Site

    home = Site(paths.data_dir(), paths.cache_dir())
    known = up.existing(home, args.name, running=not args.log)
    if args.log:
        sys.stdout.write(known.serial_since())
        return 0
    print("Connected; Ctrl-] leaves, Enter brings a prompt.", file=sys.stderr)
    console.join(known.directory / qemu.CONSOLE, sys.stdin.fileno(), sys.stdout.fileno())
    return 0
