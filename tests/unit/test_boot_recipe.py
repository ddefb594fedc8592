"""Initrd and boot image as pieces of /usr: the pieces make the image again, bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.factory import boot_recipe
from proa.factory.boot_recipe import Contents, FromPart, FromUsr, Literal, RecipeError, Segment
from support import cpio as cpio_archive

LIBRARY = b"a library" * 100
KERNEL = b"the kernel" * 500


@pytest.fixture
def usr(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/one.so").write_bytes(LIBRARY)
    (tmp_path / "lib/copy.so").write_bytes(LIBRARY)
    (tmp_path / "lib/vmlinuz").write_bytes(KERNEL)
    (tmp_path / "lib/short").write_bytes(b"short")
    return tmp_path


def cpio(files: dict[str, bytes]) -> bytes:
    """What ``cpio -H newc`` writes, as far as sizes and places go."""
    return cpio_archive.newc(files).ljust(512, b"\0")


def pe(*sections: bytes) -> bytes:
    """A PE file with nothing but sections."""
    headers = bytearray(512)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, 64)
    struct.pack_into("<4s2xH12xH", headers, 64, b"PE\0\0", len(sections), 0)
    body = b""
    for number, data in enumerate(sections):
        at = 88 + 40 * number + 8
        struct.pack_into("<IIII", headers, at, len(data), 0, len(data) + 100, 512 + len(body))
        body += data + bytes(100)
    return bytes(headers) + body


def test_an_initrd_is_files_of_usr_and_a_few_bytes_of_its_own(usr: Path) -> None:
    archive = cpio({"init": b"own", "lib/one.so": LIBRARY, "short": b"short", "k": KERNEL})
    segments = boot_recipe.segments_of_initrd(archive, Contents(usr))
    assert boot_recipe.join(segments, usr, {}) == archive
    # Of two files with the same content always the same one is named.
    assert [s.path for s in segments if isinstance(s, FromUsr)] == ["lib/copy.so", "lib/vmlinuz"]
    assert len(boot_recipe.literals(segments)) == len(archive) - len(LIBRARY) - len(KERNEL)


def test_a_boot_image_is_the_kernel_of_usr_and_the_initrd(usr: Path) -> None:
    initrd = b"compressed" * 300
    image = pe(b"the stub", KERNEL, b"quiet", initrd)
    segments = boot_recipe.segments_of_uki(image, Contents(usr), {"initrd": initrd})
    assert boot_recipe.join(segments, usr, {"initrd": initrd}) == image
    kinds = [type(s) for s in segments]
    assert kinds == [Literal, FromUsr, Literal, FromPart, Literal]


def test_another_usr_is_refused(usr: Path) -> None:
    segments = boot_recipe.segments_of_initrd(cpio({"a": LIBRARY}), Contents(usr))
    (usr / "lib/copy.so").write_bytes(LIBRARY[:-1] + b"?")
    with pytest.raises(RecipeError, match=r"copy\.so"):
        boot_recipe.join(segments, usr, {})


@given(st.data())
def test_damaged_images_are_described_exactly_or_refused(data: st.DataObject) -> None:
    archive = data.draw(st.sampled_from([cpio({"a": LIBRARY, "b": b"x"}), pe(b"stub", KERNEL)]))
    image = bytearray(archive)
    image[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    image = image[: data.draw(st.integers(0, len(image)))]
    empty = Contents(Path("/nonexistent"))
    ways: list[Callable[[], list[Segment]]] = [
        lambda: boot_recipe.segments_of_initrd(bytes(image), empty),
        lambda: boot_recipe.segments_of_uki(bytes(image), empty, {}),
    ]
    for describe in ways:
        try:
            segments = describe()
        except RecipeError:
            continue
        assert boot_recipe.join(segments, Path("/nonexistent"), {}) == bytes(image)
