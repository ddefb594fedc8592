"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from proa import paths
from proa.wire.errors import UserError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_repo(parser: argparse.ArgumentParser) -> None:
    """Add ``--repo``."""
    parser.add_argument(
        "--repo",
        type=Path,
        default=paths.data_dir() / "repository",
        metavar="DIR",
        help="the repository (default: $PROA_HOME/repository)",
    )


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add ``--keys`` and ``--passphrase-file``."""
    parser.add_argument(
        "--keys",
        type=Path,
        default=paths.data_dir() / "keys",
        metavar="DIR",
        help="the key directory (default: $PROA_HOME/keys)",
    )
    add_passphrase(parser)


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    """Add ``--passphrase-file``."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="the passphrase of the offline keys is the first line of FILE",
    )


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add ``--db``."""
    parser.add_argument(
        "--db",
        type=Path,
        default=paths.data_dir() / "server.db",
        metavar="FILE",
        help="the server's database (default: $PROA_HOME/server.db)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def passphrase(file: Path | None) -> bytes | None:
    """Read a passphrase file; its content never gets into a message."""
    if file is None:
        return None
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if not lines or not lines[0]:
        raise UserError(f"{file} has no passphrase in its first line")
    return lines[0]


def duration(text: str) -> timedelta:
    """Read ``90d``, ``12h``, ``30m`` or ``10s`` (for argparse's ``type``)."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write it as 90d, 12h, 30m or 10s"
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def count(text: str) -> int:
    """Read a number from 0 to 1000 (for argparse's ``type``)."""
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1000")
    return int(text)


def size(count: int) -> str:
    """Return a number of bytes as people say it: ``812 B``, ``131 kB``, ``42.7 MB``."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 999_500 else f"{count / 1e6:.1f} MB"


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as aligned columns under headings; the last column may be any width."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
