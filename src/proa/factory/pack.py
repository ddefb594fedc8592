"""Packing a payload's sections: the smallest that a small machine can unpack."""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import zstandard

from proa.wire.payload import Packing, Section

# (lc, lp, pb): settings of LZMA that suit text and code, tables of numbers, and bytes of no kind.
_SETTINGS = ((3, 0, 0), (1, 0, 0), (0, 0, 0), (3, 0, 2), (0, 2, 2), (4, 0, 0))
# Up to this size every setting is tried; above it the first three.
_SMALL = 4 << 20
# With three lanes of three sections and a plan, all windows together stay below MAX_WINDOWS.
_DICTIONARY = 3 << 20


def pack(data: bytes, *, fast: bool) -> tuple[Section, bytes]:
    """Return ``data`` packed.

    ``fast`` asks for what unpacks at the speed of a disk, for whole images; the other way is
    smaller and slower, for deltas.
    """
    best = Section(Packing.NONE, len(data), len(data)), data
    for candidate in (_zstd(data),) if fast else _lzma(data):
        if len(candidate[1]) < len(best[1]):
            best = candidate
    return best


def _zstd(data: bytes) -> tuple[Section, bytes]:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=len(data), window_log=min(22, max(10, len(data).bit_length()))
    )
    packed = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    return Section(Packing.ZSTD, len(packed), len(data)), packed


def _lzma(data: bytes) -> Sequence[tuple[Section, bytes]]:
    found = []
    dictionary = max(4096, min(_DICTIONARY, 1 << len(data).bit_length()))
    for lc, lp, pb in _SETTINGS if len(data) <= _SMALL else _SETTINGS[:3]:
        filters = [
            {
                "id": lzma.FILTER_LZMA2,
                "preset": 9 | lzma.PRESET_EXTREME,
                "dict_size": dictionary,
                "lc": lc,
                "lp": lp,
                "pb": pb,
            }
        ]
        packed = lzma.compress(data, lzma.FORMAT_RAW, filters=filters)
        settings = (pb * 5 + lp) * 9 + lc
        section = Section(Packing.LZMA, len(packed), len(data), settings, dictionary)
        found.append((section, packed))
    return found
