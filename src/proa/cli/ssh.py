"""``proa ssh``: a shell on the machine, or one command there."""

from __future__ import annotations

import argparse
import os

EPILOG = """\
You are user `core`; `sudo` works without a password. Options for ssh itself go after `--`.

examples:
  proa ssh
  proa ssh proactl status
  proa ssh sudo journalctl -b
  proa ssh --name other -- -L 2379:127.0.0.1:2379

exit status: that of the command on the machine, or of ssh itself (255)
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "ssh",
        help="a shell on the machine",
        description="Open a shell on the machine of `proa up`, or run one command there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="proa", help="the machine's name (default: %(default)s)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND …")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.lab import shell, up
    from proa.lab.site import Site

    home = Site(paths.data_dir(), paths.cache_dir())
    known = up.existing(home, args.name, running=True)
    given = list(args.arguments)
    own_options = []
    if given[:1] == ["--"]:
        own_options, given = given[1:], []
    command = [
        *("ssh", *shell.options(known.directory, home.ssh_key), *own_options),
        *("-p", str(known.record.ssh_port), f"{shell.USER}@127.0.0.1"),
        *(["--", *given] if given else []),
    ]
    os.execvp(command[0], command)  # noqa: S606
