"""The zstd frames of the kernel and the initrd, made so that a small machine can make them again.

An update brings the plain kernel and the plain initrd, mostly out of what is there, and the machine
compresses them to the very bytes of the release. So what counts is little memory and little time,
and only then size: ``docs/decisions/0007-kernel-frame.md`` has the measurements.
"""

from __future__ import annotations

from pathlib import Path

from proa.wire.codec import Zstd

# (number in enum ZSTD_cParameter, value): windowLog, hashLog, chainLog, searchLog, minMatch,
# targetLength, strategy (lazy2), checksum. Every parameter that shapes a frame, so that no default
# of a library does. A change is a new way to make releases: old ones keep theirs.
PARAMETERS = (
    (101, 21),
    (102, 19),
    (103, 20),
    (104, 4),
    (105, 5),
    (106, 16),
    (107, 5),
    (201, 1),
)

_PIECE = 1 << 20


def encode(source: Path, target: Path, library: Path) -> None:
    """Compress a file to one frame with the libzstd at ``library``: Debian 13's, not the host's."""
    size = source.stat().st_size
    with source.open("rb") as file, target.open("wb") as out:
        chunks = iter(lambda: file.read(_PIECE), b"")
        for piece in Zstd(str(library)).encode_with(chunks, PARAMETERS, size):
            out.write(piece)
