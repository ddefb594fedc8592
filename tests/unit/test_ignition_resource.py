"""What comes from elsewhere piece by piece is unpacked, bounded and verified on its way."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.parse import Refused
from proa.machine.cloudconfig.resource import Resource

URL = "https://example.com/x"


def cut_up(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@given(st.lists(st.binary(max_size=2000), max_size=4), st.integers(1, 60), st.booleans())
def test_gzip_is_the_same_however_it_comes_in_pieces(
    members: list[bytes], size: int, padded: bool
) -> None:
    packed = b"".join(gzip.compress(member) for member in members) + b"\0" * 9 * padded
    resource = Resource(URL, compression="gzip")
    if not members:
        with pytest.raises(Refused):
            resource.content(packed, 10_000)
        return
    assert b"".join(resource.opened(cut_up(packed, size), 10_000)) == b"".join(members)


@given(st.binary(max_size=300), st.integers(1, 60))
def test_what_is_no_gzip_is_refused_and_nothing_else_happens(data: bytes, size: int) -> None:
    try:
        b"".join(Resource(URL, compression="gzip").opened(cut_up(data, size), 10_000))
    except Refused:
        return
    gzip.decompress(data.rstrip(b"\0") or data)


def test_a_cut_gzip_is_refused_wherever_it_is_cut() -> None:
    packed = gzip.compress(b"hello" * 100)
    for end in range(len(packed)):
        with pytest.raises(Refused):
            Resource(URL, compression="gzip").content(packed[:end], 10_000)


def test_a_bomb_is_stopped_at_the_limit_in_little_memory() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(Refused, match="larger than 32768 KiB"):
        for _ in Resource(URL, compression="gzip").opened(cut_up(bomb, 65536), 32 << 20):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_the_digest_is_that_of_what_comes_out(name: str) -> None:
    digest = f"{name}-{hashlib.new(name, b'hello').hexdigest()}"
    assert Resource(URL, (), digest).content(b"hello", 10) == b"hello"
    packed = gzip.compress(b"hello")
    assert Resource(URL, (), digest, "gzip").content(packed, 10) == b"hello"
    with pytest.raises(Refused, match=f"its {name} is not the one"):
        Resource(URL, (), digest).content(b"hell0", 10)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    resource = Resource(URL, (), "sha256-" + "0" * 64)
    ids = (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    with pytest.raises(Refused), files.replacing(tmp_path, "/a", 0o644, *ids) as file:
        for piece in resource.opened((b"new", b"er"), 10):
            file.write(piece)
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
