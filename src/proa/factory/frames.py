"""How releases compress their kernel and their initrd, each in one zstd frame.

The parameters are few enough bytes of tables for a machine to make the same frame again; the
measurements are in docs/decisions/0007-kernel-frame.md. They are told to the machine in each
payload, so they may change from release to release.

Run as a program by the SDK's Python, with the SDK's libzstd, which is the machine's too. So nothing
is imported here but :mod:`proa.wire`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from proa.wire.codec import Zstd

# Pairs of a number of enum ZSTD_cParameter and a value: windowLog, hashLog, chainLog, searchLog,
# minMatch, targetLength, strategy (7 is btopt, 8 btultra), checksumFlag.
KERNEL = ((101, 22), (102, 19), (103, 21), (104, 7), (105, 3), (106, 256), (107, 8), (201, 1))
INITRD = ((101, 22), (102, 19), (103, 20), (104, 5), (105, 3), (106, 64), (107, 7), (201, 1))
PARAMETERS = {"kernel": KERNEL, "initrd": INITRD}

_PIECE = 128 << 10


def compress(source: Path, target: Path, parameters: tuple[tuple[int, int], ...]) -> None:
    """Write the frame of the file ``source`` to ``target``; memory: zstd's, and a few pieces."""
    size = source.stat().st_size
    with source.open("rb") as plain, target.open("wb") as out:
        for piece in Zstd().encode_with(_pieces(plain), parameters, size):
            out.write(piece)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def main(arguments: list[str]) -> int:
    """Compress ``source`` to ``target`` as releases compress a file of this kind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kind", choices=sorted(PARAMETERS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(arguments)
    compress(args.source, args.target, PARAMETERS[args.kind])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
