"""One zstd frame, made the same way everywhere: fixed parameters, fixed chunks, one thread.

The bytes of a frame depend on the library's version, on every parameter, and on how the input is
handed over. All of them are fixed here, so that a machine with the same library makes the same
frame again in the same little memory.

This file is also run as a program by the SDK's Python, with the SDK's library; so it needs nothing
but the standard library, and Python 3.11.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# How much of the input is handed to the library at once, in bytes. It is the size of a zstd block.
CHUNK = 128 << 10
_CONTINUE, _END = 0, 2


@dataclass(frozen=True)
class Parameters:
    """Every parameter that shapes a frame; logs are powers of two.

    The numbers of the fields in zstd.h are in :data:`_KEYS`. ``strategy`` 7 is btopt, 9 btultra2.
    """

    window_log: int
    hash_log: int
    chain_log: int
    search_log: int
    min_match: int
    target_length: int
    strategy: int
    checksum: int = 0


_KEYS = {
    "window_log": 101,
    "hash_log": 102,
    "chain_log": 103,
    "search_log": 104,
    "min_match": 105,
    "target_length": 106,
    "strategy": 107,
    "checksum": 201,
}

# The sets that releases use; a name is for ever. docs/decisions/0007-kernel-frame.md has the
# measurements behind the numbers.
PROFILES = {
    "kernel-1": Parameters(22, 19, 21, 7, 3, 256, 8, checksum=1),
    "initrd-1": Parameters(22, 19, 20, 5, 3, 64, 7, checksum=1),
}


class ZstdError(RuntimeError):
    """The library refused; the message is its own."""


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer: address, size, position."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("position", ctypes.c_size_t),
    )


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_createCCtx.restype = ctypes.c_void_p
    library.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
    library.ZSTD_CCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.ZSTD_CCtx_setParameter.restype = ctypes.c_size_t
    library.ZSTD_CCtx_setPledgedSrcSize.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    library.ZSTD_CCtx_setPledgedSrcSize.restype = ctypes.c_size_t
    buffer = ctypes.POINTER(_Buffer)
    library.ZSTD_compressStream2.argtypes = [ctypes.c_void_p, buffer, buffer, ctypes.c_int]
    library.ZSTD_compressStream2.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


def encode_frame(chunks: Iterable[bytes], size: int, parameters: Parameters) -> Iterator[bytes]:
    """Yield the frame of the ``size`` bytes in ``chunks``, piece by piece.

    Each chunk but the last must have :data:`CHUNK` bytes. Raises :class:`ZstdError`.
    """
    library = _library()

    def checked(code: int) -> int:
        if library.ZSTD_isError(code):
            raise ZstdError(library.ZSTD_getErrorName(code).decode())
        return code

    context = library.ZSTD_createCCtx()
    try:
        for name, value in dataclasses.asdict(parameters).items():
            checked(library.ZSTD_CCtx_setParameter(context, _KEYS[name], value))
        checked(library.ZSTD_CCtx_setPledgedSrcSize(context, size))
        out = ctypes.create_string_buffer(CHUNK)

        def push(data: bytes, what: int) -> Iterator[bytes]:
            held = ctypes.create_string_buffer(data, len(data) or 1)
            source = _Buffer(ctypes.addressof(held), len(data), 0)
            while True:
                target = _Buffer(ctypes.addressof(out), CHUNK, 0)
                left = checked(
                    library.ZSTD_compressStream2(
                        context, ctypes.byref(target), ctypes.byref(source), what
                    )
                )
                if target.position:
                    yield out.raw[: target.position]
                if left == 0 if what == _END else source.position == source.size:
                    return

        for chunk in chunks:
            yield from push(chunk, _CONTINUE)
        yield from push(b"", _END)
    finally:
        library.ZSTD_freeCCtx(context)


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's content in pieces as :func:`encode_frame` wants them."""
    while chunk := file.read(CHUNK):
        yield chunk


def main(arguments: list[str]) -> int:
    """Compress the file ``source`` to ``target`` by a profile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile", choices=sorted(PROFILES))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(arguments)
    size = args.source.stat().st_size
    with args.source.open("rb") as source, args.target.open("wb") as target:
        for piece in encode_frame(chunks_of(source), size, PROFILES[args.profile]):
            target.write(piece)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
