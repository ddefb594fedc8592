"""``proa down``: remove the machine of ``proa up``."""

from __future__ import annotations

import argparse

EPILOG = """\
Its disk goes with it. Keys, releases, the repository and the server's database stay.

examples:
  proa down
  proa down --name other

exit status: 0 also if there was no such machine
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "down",
        help="stop and remove the machine",
        description="Stop the machine of `proa up` and its update server, and remove its disk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="proa", help="the machine's name (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.lab import up
    from proa.lab.site import Site

    removed = up.down(Site(paths.data_dir(), paths.cache_dir()), args.name)
    print(f"Removed machine {args.name!r}." if removed else f"There is no machine {args.name!r}.")
    return 0
