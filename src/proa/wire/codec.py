"""Calls to libzstd and liblz4: clusters of an erofs image, and streams of one zstd frame.

A cluster is encoded by the very call that mkfs.erofs 1.8.6 makes (lib/compressor_libzstd.c and
lib/compressor_lz4.c of erofs-utils), so that the same library makes the same bytes. What another
version of a library makes may differ by a few bytes: whoever needs certainty compares.

Both libraries are loaded by name, or by a path that is given, so that a factory can use the
libraries of an older release. No function here reads or writes beyond the buffers that it is given
or makes, and every return code is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

Algorithm = Literal["raw", "zstd", "lz4"]

# The largest plain size of a cluster (Z_EROFS_PCLUSTER_MAX_DSIZE) and the largest stored size
# (Z_EROFS_PCLUSTER_MAX_SIZE) that Linux reads; erofs_fs.h.
MAX_PLAIN = 12 << 20
MAX_STORED = 1 << 20

BLOCK = 4096

# mkfs.erofs lets zstd write this much more than a cluster before it calls it too large. Near the
# end of its room zstd chooses otherwise, so the room is part of what makes the bytes.
_ZSTD_SLACK = 32

# How much of what follows a cluster's plain bytes liblz4 must see to make the bytes it made when
# it saw the rest of the file: see :meth:`Codec.encode`.
LZ4_AHEAD = 128 << 10

# Pieces in which streams are fed to zstd and taken from it; its own block size.
_PIECE = 128 << 10

# enum ZSTD_cParameter, ZSTD_dParameter, ZSTD_EndDirective and ZSTD_ResetDirective of zstd.h.
_C_LEVEL, _C_WINDOW_LOG, _C_LONG, _C_CHECKSUM = 100, 101, 160, 201
_D_WINDOW_LOG_MAX = 100
_E_CONTINUE, _E_END = 0, 2
_RESET_SESSION = 1


class CodecError(ValueError):
    """A library is missing, refuses its input, or did not make what was asked for."""


@dataclass(frozen=True)
class Encoding:
    """How an image's clusters were encoded; what mkfs.erofs was asked for.

    ``cluster`` is the largest stored size in bytes (``-C``). mkfs.erofs takes the window of zstd to
    be 8 clusters, 1 MiB at most.
    """

    algorithm: Algorithm
    level: int = 3
    cluster: int = 64 << 10

    @property
    def window_log(self) -> int:
        return min(1 << 20, self.cluster << 3).bit_length() - 1


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("data", c_void_p), ("size", c_size_t), ("pos", c_size_t))


class Zstd:
    """libzstd. ``path`` is a file, or None for the system's."""

    def __init__(self, path: str | None = None) -> None:
        library = _load(path or "libzstd.so.1")
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ZSTD_versionNumber": (c_uint, []),
            "ZSTD_isError": (c_uint, [c_size_t]),
            "ZSTD_getErrorName": (c_char_p, [c_size_t]),
            "ZSTD_createCCtx": (c_void_p, []),
            "ZSTD_freeCCtx": (c_size_t, [c_void_p]),
            "ZSTD_CCtx_reset": (c_size_t, [c_void_p, c_int]),
            "ZSTD_CCtx_setParameter": (c_size_t, [c_void_p, c_int, c_int]),
            "ZSTD_CCtx_setPledgedSrcSize": (c_size_t, [c_void_p, c_ulonglong]),
            "ZSTD_compress2": (c_size_t, [c_void_p, c_void_p, c_size_t, c_char_p, c_size_t]),
            "ZSTD_compressStream2": (
                c_size_t,
                [c_void_p, POINTER(_Buffer), POINTER(_Buffer), c_int],
            ),
            "ZSTD_createDCtx": (c_void_p, []),
            "ZSTD_freeDCtx": (c_size_t, [c_void_p]),
            "ZSTD_DCtx_setParameter": (c_size_t, [c_void_p, c_int, c_int]),
            "ZSTD_decompressDCtx": (c_size_t, [c_void_p, c_void_p, c_size_t, c_char_p, c_size_t]),
            "ZSTD_decompressStream": (c_size_t, [c_void_p, POINTER(_Buffer), POINTER(_Buffer)]),
        }
        self._library = _declare(library, signatures)
        number = int(library.ZSTD_versionNumber())
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def compressor(
        self, level: int, window_log: int = 0, *, long: bool = False, checksum: bool = False
    ) -> Compressor:
        """Return a compressor of these parameters; window_log 0 is the level's own."""
        wanted = (
            (_C_LEVEL, level),
            (_C_WINDOW_LOG, window_log),
            (_C_LONG, int(long)),
            (_C_CHECKSUM, int(checksum)),
        )
        return Compressor(self._library, [pair for pair in wanted if pair[1]])

    def decompressor(self, max_window_log: int = 27) -> Decompressor:
        """Return a decompressor that refuses a window of more than 2**max_window_log bytes."""
        return Decompressor(self._library, max_window_log)

    def encode_frame(
        self,
        chunks: Iterable[bytes],
        level: int,
        window_log: int = 0,
        *,
        size: int | None = None,
        long: bool = False,
        checksum: bool = False,
    ) -> Iterator[bytes]:
        """Yield one frame of all of ``chunks``; how they are cut does not matter.

        ``size`` is the sum of their lengths, if it is known: it goes into the frame, and zstd fits
        its tables to it. Memory: zstd's own for this level and window, and a few pieces.
        """
        with contextlib.closing(
            self.compressor(level, window_log, long=long, checksum=checksum)
        ) as compressor:
            yield from compressor.stream(chunks, size)

    def encode_with(
        self, chunks: Iterable[bytes], parameters: Iterable[tuple[int, int]], size: int
    ) -> Iterator[bytes]:
        """Like :meth:`encode_frame`, with any parameters: pairs of a number of enum
        ZSTD_cParameter and a value."""
        with contextlib.closing(Compressor(self._library, parameters)) as compressor:
            yield from compressor.stream(chunks, size)

    def decode_frame(self, chunks: Iterable[bytes], max_window_log: int = 23) -> Iterator[bytes]:
        """Yield the plain content of the one frame that ``chunks`` hold, in pieces.

        Raises :class:`CodecError` when the frame is damaged, cut off, or followed by anything.
        Memory: the frame's window (2**max_window_log bytes at most) and a few pieces.
        """
        with contextlib.closing(self.decompressor(max_window_log)) as decompressor:
            yield from decompressor.stream(chunks)

    def reader(self, chunks: Iterable[bytes], max_window_log: int = 23) -> ZstdDecoder:
        """Return :meth:`decode_frame` as something to read from."""
        return ZstdDecoder(self.decode_frame(chunks, max_window_log))


class ZstdDecoder:
    """The plain content of a frame, read in pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer only at the end of the frame."""
        parts = []
        while size > 0:
            if self._at == len(self._rest):
                self._rest, self._at = next(self._pieces, b""), 0
                if not self._rest:
                    break
            part = self._rest[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def at_end(self) -> bool:
        """Whether the frame is over, and was whole."""
        while self._at == len(self._rest):
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._rest, self._at = piece, 0
        return False


class _Context:
    """A context of libzstd, which is given back by close() or with the object."""

    def __init__(self, library: Any, kind: str) -> None:
        self._library = library
        self._context = getattr(library, f"ZSTD_create{kind}")()
        if not self._context:
            raise CodecError("zstd: out of memory")
        self._free = weakref.finalize(self, getattr(library, f"ZSTD_free{kind}"), self._context)

    def close(self) -> None:
        """Give the memory back; the object is of no use afterwards."""
        self._free()
        self._context = None

    def _check(self, code: int) -> int:
        if self._library.ZSTD_isError(code):
            name = self._library.ZSTD_getErrorName(code).decode("ascii", "replace")
            raise CodecError(f"zstd: {name}")
        return code

    def _open(self) -> Any:
        if self._context is None:
            raise CodecError("zstd: the context is closed")
        return self._context


class Compressor(_Context):
    """A compression context; for one thread at a time."""

    def __init__(self, library: Any, parameters: Iterable[tuple[int, int]]) -> None:
        """``parameters`` are pairs of a number of enum ZSTD_cParameter and a value."""
        super().__init__(library, "CCtx")
        for parameter, value in parameters:
            self._check(library.ZSTD_CCtx_setParameter(self._context, parameter, value))

    def encode(self, plain: bytes, room: int) -> bytes | None:
        """Return ``plain`` as one frame of at most ``room`` bytes, or None if it needs more."""
        target = ctypes.create_string_buffer(room)
        code = self._library.ZSTD_compress2(self._open(), target, room, plain, len(plain))
        if self._library.ZSTD_isError(code):
            # ZSTD_error_dstSize_tooSmall, as the negative number that the code is.
            if code == 2 ** (8 * ctypes.sizeof(c_size_t)) - 70:
                return None
            self._check(code)
        return ctypes.string_at(target, code)

    def stream(self, chunks: Iterable[bytes], size: int | None = None) -> Iterator[bytes]:
        """Yield one frame of all of ``chunks``; see :meth:`Zstd.encode_frame`."""
        library, context = self._library, self._open()
        # What came before may have failed, or been left, half-way.
        self._check(library.ZSTD_CCtx_reset(context, _RESET_SESSION))
        if size is not None:
            self._check(library.ZSTD_CCtx_setPledgedSrcSize(context, size))
        target = ctypes.create_string_buffer(_PIECE)
        # The same pieces whatever the chunks were: how zstd is fed shapes what it makes.
        total = 0
        for piece, last in _cut(chunks, _PIECE):
            total += len(piece)
            # zstd does not see it when everything comes in one piece.
            if size is not None and (total > size or (last and total < size)):
                raise CodecError(f"zstd: {total} bytes or more came instead of {size}")
            source = _Buffer(ctypes.cast(c_char_p(piece), c_void_p), len(piece), 0)
            while True:
                room = _Buffer(ctypes.cast(target, c_void_p), _PIECE, 0)
                left = self._check(
                    library.ZSTD_compressStream2(
                        context, byref(room), byref(source), _E_END if last else _E_CONTINUE
                    )
                )
                if room.pos:
                    yield ctypes.string_at(target, room.pos)
                if (left == 0) if last else (source.pos == source.size):
                    break


class Decompressor(_Context):
    """A decompression context; for one thread at a time."""

    def __init__(self, library: Any, max_window_log: int) -> None:
        super().__init__(library, "DCtx")
        self._check(
            library.ZSTD_DCtx_setParameter(self._context, _D_WINDOW_LOG_MAX, max_window_log)
        )

    def decode(self, stored: bytes, plain: int) -> bytes:
        """Return the content of the frame ``stored``, which must be ``plain`` bytes long."""
        target = ctypes.create_string_buffer(max(plain, 1))
        code = self._library.ZSTD_decompressDCtx(self._open(), target, plain, stored, len(stored))
        if self._check(code) != plain:
            raise CodecError(f"zstd: {code} plain bytes instead of {plain}")
        return ctypes.string_at(target, plain)

    def stream(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the content of one frame; see :meth:`Zstd.decode_frame`."""
        target = ctypes.create_string_buffer(_PIECE)
        ended = False
        for chunk in chunks:
            source = _Buffer(ctypes.cast(c_char_p(chunk), c_void_p), len(chunk), 0)
            while not ended:
                room = _Buffer(ctypes.cast(target, c_void_p), _PIECE, 0)
                left = self._check(
                    self._library.ZSTD_decompressStream(self._open(), byref(room), byref(source))
                )
                ended = left == 0
                if room.pos:
                    yield ctypes.string_at(target, room.pos)
                # Room that was not filled means that zstd holds nothing back.
                if source.pos == source.size and room.pos < _PIECE:
                    break
            if ended and source.pos < source.size:
                raise CodecError("zstd: something follows the frame")
        if not ended:
            raise CodecError("zstd: the frame is cut off")


class Lz4:
    """liblz4. ``path`` is a file, or None for the system's."""

    def __init__(self, path: str | None = None) -> None:
        library = _load(path or "liblz4.so.1")
        self._library = _declare(
            library,
            {
                "LZ4_versionString": (c_char_p, []),
                "LZ4_compress_destSize": (c_int, [c_char_p, c_void_p, POINTER(c_int), c_int]),
                "LZ4_decompress_safe": (c_int, [c_char_p, c_void_p, c_int, c_int]),
            },
        )
        self.version = library.LZ4_versionString().decode("ascii", "replace")

    def encode(self, plain: bytes, room: int) -> tuple[bytes, int]:
        """Return a block of at most ``room`` bytes, and of how many bytes of ``plain`` it is."""
        target = ctypes.create_string_buffer(room)
        taken = c_int(len(plain))
        size = self._library.LZ4_compress_destSize(plain, target, byref(taken), room)
        if size <= 0:
            raise CodecError("lz4: the encoder failed")
        return ctypes.string_at(target, size), taken.value

    def decode(self, stored: bytes, plain: int) -> bytes:
        """Return the content of the block ``stored``, which must be ``plain`` bytes long."""
        target = ctypes.create_string_buffer(max(plain, 1))
        size = self._library.LZ4_decompress_safe(stored, target, len(stored), plain)
        if size != plain:
            raise CodecError("lz4: the block is damaged")
        return ctypes.string_at(target, plain)


class Codec:
    """Decodes and encodes clusters. Each library is loaded when it is first needed.

    Holds a context or two of libzstd (2 MiB or so) until it is closed; for one thread at a time.
    """

    def __init__(self, zstd: str | None = None, lz4: str | None = None) -> None:
        self._zstd_path, self._lz4_path = zstd, lz4
        self._zstd: Zstd | None = None
        self._lz4: Lz4 | None = None
        self._decompressor: Decompressor | None = None
        self._compressor: tuple[Encoding, Compressor] | None = None

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all contexts back; they are made anew when needed."""
        if self._decompressor is not None:
            self._decompressor.close()
        if self._compressor is not None:
            self._compressor[1].close()
        self._decompressor = self._compressor = None

    @property
    def zstd(self) -> Zstd:
        self._zstd = self._zstd or Zstd(self._zstd_path)
        return self._zstd

    @property
    def lz4(self) -> Lz4:
        self._lz4 = self._lz4 or Lz4(self._lz4_path)
        return self._lz4

    def decode(self, algorithm: Algorithm, stored: bytes, plain: int) -> bytes:
        """Return the ``plain`` bytes that the cluster ``stored`` holds.

        ``stored`` is what the encoder made, without padding. Raises :class:`CodecError`.
        """
        if not 0 <= plain <= MAX_PLAIN:
            raise CodecError(f"a cluster of {plain} plain bytes is out of bounds")
        match algorithm:
            case "raw":
                if len(stored) != plain:
                    raise CodecError(f"{len(stored)} bytes instead of {plain}")
                return bytes(stored)
            case "zstd":
                if self._decompressor is None:
                    self._decompressor = self.zstd.decompressor(20)
                return self._decompressor.decode(stored, plain)
            case "lz4":
                return self.lz4.decode(stored, plain)
        raise CodecError(f"no such algorithm: {algorithm}")

    def encode(self, encoding: Encoding, plain: bytes, stored: int, ahead: bytes = b"") -> bytes:
        """Return ``plain`` as the cluster of ``stored`` bytes that mkfs.erofs made of it.

        ``ahead`` is the plain content that follows, and is for lz4 only: mkfs.erofs hands liblz4
        all that it has of the file and lets it take what fits, and liblz4 looks ahead. Give at
        least :data:`LZ4_AHEAD` bytes, or all up to where mkfs.erofs had no more
        (:func:`ahead_end`).

        Raises :class:`CodecError` if no call makes ``stored`` bytes. That the bytes are the same
        is likely but not sure: compare a hash.
        """
        if not 0 < len(plain) <= MAX_PLAIN or not 0 < stored <= encoding.cluster <= MAX_STORED:
            raise CodecError(f"{len(plain)} plain bytes to {stored} bytes is out of bounds")
        # A cluster at a file's end may have been made anew for fewer blocks.
        rooms = dict.fromkeys([encoding.cluster, -(-stored // BLOCK) * BLOCK])
        for room in rooms:
            if encoding.algorithm == "zstd":
                made = self._zstd_encoder(encoding).encode(plain, room + _ZSTD_SLACK)
            elif encoding.algorithm == "lz4":
                made, taken = self.lz4.encode(plain + ahead, room)
                made = made if taken == len(plain) else None
            else:
                raise CodecError(f"no encoder for {encoding.algorithm}")
            if made is not None and len(made) == stored:
                return made
        raise CodecError(f"{encoding.algorithm}: {len(plain)} bytes do not become {stored}")

    def _zstd_encoder(self, encoding: Encoding) -> Compressor:
        if self._compressor is None or self._compressor[0] != encoding:
            if self._compressor is not None:
                self._compressor[1].close()
            compressor = self.zstd.compressor(encoding.level, encoding.window_log)
            self._compressor = encoding, compressor
        return self._compressor[1]


def ahead_end(logical: int, size: int, segment: int = 16 << 20) -> int:
    """Return up to where in a file of ``size`` bytes mkfs.erofs's encoder saw it at ``logical``.

    It encodes a file in segments of 16 MiB, each for itself (c_mkfs_segment_size in mkfs/main.c).
    """
    return min(size, (logical // segment + 1) * segment)


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise CodecError(f"{name} cannot be loaded: {error}") from None


def _declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, list[Any]]]) -> Any:
    for name, (result, arguments) in signatures.items():
        try:
            function: Callable[..., Any] = getattr(library, name)
        except AttributeError:
            raise CodecError(f"the library has no {name}") from None
        function.restype = result  # type: ignore[attr-defined]
        function.argtypes = arguments  # type: ignore[attr-defined]
    return library


def _cut(chunks: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Yield (piece, whether it is the last), each of ``size`` bytes but the last."""
    held = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while len(held) + len(view) > size:
            part = size - len(held)
            held += view[:part]
            view = view[part:]
            yield bytes(held), False
            held.clear()
        held += view
    yield bytes(held), True
