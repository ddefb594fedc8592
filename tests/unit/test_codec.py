"""Clusters come out as mkfs.erofs made them; a zstd frame depends on its content alone."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from hashlib import shake_256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.wire.codec import (
    LZ4_AHEAD,
    MAX_PLAIN,
    Codec,
    CodecError,
    Encoding,
    Lz4,
    Zstd,
    ahead_end,
)
from proa.wire.erofs import Image
from support import erofs_samples as samples

NOISE = shake_256(b"noise").digest(400_000)


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with Codec() as made:
        yield made


@pytest.fixture(scope="module")
def zstd() -> Zstd:
    return Zstd()


def clusters(name: str) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """Yield (algorithm, stored, plain, what follows it) of each encoded cluster of a sample."""
    data = samples.image(name)
    image = Image(lambda offset, size: data[offset : offset + size], len(data))
    for entry in image.walk():
        if not entry.is_file or entry.path == samples.HARD_LINK[0]:
            continue
        content = samples.FILES[entry.path]
        for extent in image.extents(entry.inode):
            if extent.algorithm != "raw":
                end = extent.logical + extent.plain
                stop = min(ahead_end(extent.logical, len(content)), end + LZ4_AHEAD)
                yield (
                    extent.algorithm,
                    image.stored(extent),
                    content[extent.logical : end],
                    content[end:stop],
                )


@pytest.mark.parametrize(("name", "size"), [("lz4", samples.CLUSTER), ("small", 4096)])
def test_lz4_makes_every_cluster_of_mkfs_again(name: str, size: int, codec: Codec) -> None:
    found = list(clusters(name))
    assert len(found) > 10
    for algorithm, stored, plain, ahead in found:
        assert codec.decode("lz4", stored, len(plain)) == plain
        assert algorithm == "lz4"
        assert codec.encode(Encoding("lz4", cluster=size), plain, len(stored), ahead) == stored


def test_zstd_makes_the_clusters_of_mkfs_again(codec: Codec) -> None:
    # The whole claim needs the library of mkfs.erofs and is made in tests/machine. Another version
    # may pack a cluster to another size, which encode() notices, or to other bytes of that size.
    encoding = Encoding("zstd", cluster=samples.CLUSTER)
    same = 0
    found = list(clusters("zstd"))
    for _, stored, plain, _ in found:
        assert codec.decode("zstd", stored, len(plain)) == plain
        try:
            made = codec.encode(encoding, plain, len(stored))
        except CodecError:
            continue
        assert len(made) == len(stored)
        assert codec.decode("zstd", made, len(plain)) == plain
        same += made == stored
    assert same == len(found) if codec.zstd.version == "1.5.7" else same > 0


def test_a_frame_shrinks_its_window_to_that_of_mkfs() -> None:
    assert Encoding("zstd").window_log == 19
    assert Encoding("zstd", cluster=8192).window_log == 16
    assert Encoding("zstd", cluster=1 << 20).window_log == 20


def test_lz4_must_see_what_follows(codec: Codec) -> None:
    # Why encode() takes `ahead`: without it liblz4 ends each block as the last of a file.
    encoding = Encoding("lz4", cluster=samples.CLUSTER)
    different = 0
    for _, stored, plain, ahead in clusters("lz4"):
        if ahead:
            try:
                different += codec.encode(encoding, plain, len(stored)) != stored
            except CodecError:
                different += 1
    assert different > 0


def test_mkfs_encodes_in_segments() -> None:
    mib = 1 << 20
    assert ahead_end(0, 100) == 100
    assert ahead_end(15 * mib, 40 * mib) == 16 * mib
    assert ahead_end(16 * mib, 40 * mib) == 32 * mib
    assert ahead_end(33 * mib, 40 * mib) == 40 * mib


@pytest.mark.parametrize(
    ("plain", "stored"), [(b"", 10), (b"a" * 100, 0), (b"a" * 100, 70_000), (NOISE, 60_000)]
)
def test_what_cannot_be_encoded_is_refused(plain: bytes, stored: int, codec: Codec) -> None:
    for algorithm in ("zstd", "lz4"):
        with pytest.raises(CodecError):
            codec.encode(Encoding(algorithm), plain, stored)


def test_what_cannot_be_decoded_is_refused(codec: Codec) -> None:
    for name, algorithm in (("zstd", "zstd"), ("lz4", "lz4")):
        _, stored, plain, _ = next(clusters(name))
        for damaged in (stored[:-1], stored[1:], b"\xff" * len(stored), b""):
            with pytest.raises(CodecError):
                codec.decode(algorithm, damaged, len(plain))  # type: ignore[arg-type]
        for size in (len(plain) - 1, len(plain) + 1, 0, -1, MAX_PLAIN + 1):
            with pytest.raises(CodecError):
                codec.decode(algorithm, stored, size)  # type: ignore[arg-type]
    with pytest.raises(CodecError):
        codec.decode("raw", b"ab", 3)


@given(st.binary(max_size=300), st.integers(0, 5000), st.sampled_from(["zstd", "lz4"]))
@settings(max_examples=300)
def test_noise_decodes_to_an_error_or_to_what_was_asked(
    stored: bytes, plain: int, algorithm: str
) -> None:
    with Codec() as codec, contextlib.suppress(CodecError):
        assert len(codec.decode(algorithm, stored, plain)) == plain  # type: ignore[arg-type]


def test_a_missing_library_is_an_error() -> None:
    for kind in (Zstd, Lz4):
        with pytest.raises(CodecError, match="cannot be loaded"):
            kind("/nowhere/lib.so")
        with pytest.raises(CodecError, match="has no"):
            kind("libc.so.6")


def test_a_closed_context_is_of_no_use(zstd: Zstd) -> None:
    compressor, decompressor = zstd.compressor(3), zstd.decompressor()
    compressor.close()
    compressor.close()
    decompressor.close()
    with pytest.raises(CodecError, match="closed"):
        compressor.encode(b"a", 100)
    with pytest.raises(CodecError, match="closed"):
        decompressor.decode(b"a", 100)


def test_a_codec_goes_on_after_it_was_closed(codec: Codec) -> None:
    _, stored, plain, _ = next(clusters("zstd"))
    assert codec.decode("zstd", stored, len(plain)) == plain
    codec.close()
    assert codec.decode("zstd", stored, len(plain)) == plain


# --- Streams ------------------------------------------------------------------------------------


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


contents = st.sampled_from([b"", b"a", NOISE, bytes(500_000), NOISE[:1000] * 700, NOISE[:131_072]])
cuts = st.lists(st.integers(0, 200_000), max_size=6)


@given(contents, cuts, cuts, st.sampled_from([1, 3, 19]), st.sampled_from([0, 10, 20]))
@settings(max_examples=60)
def test_a_frame_does_not_depend_on_how_its_content_came(
    data: bytes, one: list[int], other: list[int], level: int, window: int
) -> None:
    zstd = Zstd()
    frame = b"".join(zstd.encode_frame(cut(data, one), level, window))
    assert b"".join(zstd.encode_frame(cut(data, other), level, window)) == frame
    assert b"".join(zstd.decode_frame(cut(frame, one))) == data
    if len(frame) < 5000:
        assert b"".join(zstd.decode_frame(bytes([byte]) for byte in frame)) == data


@given(contents, st.lists(st.integers(0, 300_000), max_size=8))
@settings(max_examples=60)
def test_a_decoder_is_read_in_any_sizes(data: bytes, sizes: list[int]) -> None:
    zstd = Zstd()
    decoder = zstd.reader(zstd.encode_frame([data], 1, size=len(data), checksum=True))
    at = 0
    for size in sizes:
        assert decoder.read(size) == data[at : at + size]
        at = min(len(data), at + size)
        assert decoder.at_end() == (at == len(data))
    assert decoder.read(len(data)) == data[at:]
    assert decoder.at_end()
    assert decoder.read(1) == b""


def test_a_frame_with_a_wrong_size_is_refused(zstd: Zstd) -> None:
    for size in (99, 101):
        with pytest.raises(CodecError):
            list(zstd.encode_frame([b"a" * 100], 3, size=size))


def test_a_frame_that_is_not_whole_is_refused(zstd: Zstd) -> None:
    frame = b"".join(zstd.encode_frame([NOISE], 3, checksum=True))
    for bad, words in (
        (frame[:-1], "cut off"),
        (frame[:100_000], "cut off"),
        (b"", "cut off"),
        (frame + b"a", "follows"),
        (frame + frame, "follows"),
        (b"abcd" + frame, "zstd: "),
        (frame[:200_000] + b"\0" + frame[200_001:], "zstd: "),
    ):
        for size in (1 << 20, 131_072, 1000):
            pieces = [bad[at : at + size] for at in range(0, len(bad), size)]
            with pytest.raises(CodecError, match=words):
                list(zstd.decode_frame(pieces))


def test_a_large_window_is_refused(zstd: Zstd) -> None:
    frame = b"".join(zstd.encode_frame([NOISE], 3, 24))
    assert b"".join(zstd.decode_frame([frame], 24)) == NOISE
    with pytest.raises(CodecError, match="memory"):
        list(zstd.decode_frame([frame], 23))


def test_a_bomb_comes_in_small_pieces(zstd: Zstd) -> None:
    frame = b"".join(zstd.encode_frame((bytes(1 << 20) for _ in range(64)), 1))
    assert len(frame) < 10_000
    tracemalloc.start()
    try:
        total = sum(map(len, zstd.decode_frame([frame])))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert total == 64 << 20


def test_a_compressor_does_not_remember_what_it_did_or_left(zstd: Zstd) -> None:
    used, fresh = zstd.compressor(3), zstd.compressor(3)
    assert used.encode(NOISE, 1000) is None
    assert b"".join(used.stream([NOISE, NOISE]))
    stream = used.stream([NOISE, NOISE])
    assert next(stream)
    del stream
    assert b"".join(used.stream([NOISE])) == b"".join(fresh.stream([NOISE]))
    assert used.encode(NOISE[:1000] * 50, 9999) == fresh.encode(NOISE[:1000] * 50, 9999)
