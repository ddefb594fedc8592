"""The ``proa`` command: finds the command that was asked for, runs it, shows its errors.

Exit status: 0 done; 1 it did not work (the message says why); 2 the command line is wrong;
130 stopped by Ctrl-C. Commands with further codes document them in their own ``--help``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from proa.wire.errors import UserError

# In the order in which `proa --help` shows them. Each is a module of this package with
# add(subparsers) and run(args); a module imports its house only in run(), so help stays quick.
COMMANDS = (
    "up",
    "ssh",
    "console",
    "config",
    "status",
    "down",
    "tour",
    "test",
    "build",
    "keys",
    "payload",
    "publish",
    "repo",
    "serve",
    "channel",
    "group",
    "machines",
)

EPILOG = """\
examples:
  proa up                            build the system, boot a machine, say how to get into it
  proa ssh                           a shell on it
  proa tour                          see it update, fail, and come back by itself
  proa build --version 1.1.0 --out release-1.1.0
  proa publish release-1.1.0 && proa channel set alpha 1.1.0

Things that can be made again live in $PROA_CACHE (~/.cache/proa); keys, releases, the repository
and machines in $PROA_HOME (~/.local/share/proa).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``proa`` with ``argv`` (default: the process's own) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    interruptible()
    args = _parser(arguments).parse_args(arguments)
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"proa: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("proa: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; there is no one left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proa",
        description="Make, ship, run and try Proa, an operating system that updates itself.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only the module of the command that runs is loaded; help needs them all.
    wanted = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name in COMMANDS if wanted is None else (wanted,):
        if importlib.util.find_spec(f"proa.cli.{name}"):
            importlib.import_module(f"proa.cli.{name}").add(subparsers)
    return parser


def interruptible() -> None:
    """Have a polite kill clean up just as Ctrl-C does, and neither disturb that once it began.

    Ctrl-C reaches a command and its children at once, and the command ends its children besides.
    A second Ctrl-C is somebody's wish to be done with it, and is followed.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background: ignored
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # Not SIG_IGN, which the programs that cleaning up may start would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise KeyboardInterrupt
