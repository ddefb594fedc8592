"""What the loaders' own rules say about our entries; and the files they read."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import pe
from proa.machine.boot import grub
from proa.machine.boot.systemd_boot import compare_versions, file_name
from support.machine import make_pe, make_release, make_uki

# The examples of UAPI.10, "Version Format Specification".
ORDERED = [
    ("~", ""),
    ("", "0"),
    ("0~", "0"),
    ("0", "0."),
    ("0", "0.0"),
    ("1.0.0", "1.0.0-rc.1"),
    ("1.0.0-rc.1", "1.0.0-rc.2"),
    ("1.0.0-rc.9", "1.0.0-rc.10"),
    ("1.9.0", "1.10.0"),
    ("bar-123", "foo-123"),
    ("123", "123a"),
    ("123", "123.a"),
    ("123.a", "123.b"),
    ("123.a", "123a"),
    ("A", "a"),
    ("systemd-123", "systemd-123.1"),
]


@pytest.mark.parametrize(("older", "newer"), ORDERED)
def test_the_menu_order_of_versions(older: str, newer: str) -> None:
    assert compare_versions(older, newer) < 0
    assert compare_versions(newer, older) > 0
    assert compare_versions(older, older) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_menu_order_is_systemds() -> None:
    versions = ["1.0.0", "1.0.0-rc.1", "1.0.0-rc.1.x", "1.0.0-0", "1.0.1", "1.0.0-a", "10.0.0"]
    for one, two in itertools.product(versions, repeat=2):
        order = compare_versions(one, two)
        operator = "lt" if order < 0 else "gt" if order > 0 else "eq"
        command = ["systemd-analyze", "compare-versions", one, operator, two]
        assert subprocess.run(command, check=False).returncode == 0, (one, operator, two)


@pytest.mark.parametrize(
    ("left", "done", "name"),
    [(None, 0, "proa-b.efi"), (3, 0, "proa-b+3.efi"), (2, 1, "proa-b+2-1.efi")],
)
def test_tries_are_counted_in_the_name(left: int | None, done: int, name: str) -> None:
    assert file_name("b", left, done) == name


def test_grubenv_is_what_grub_reads() -> None:
    data = grub.dump_env({"good": "a", "next": "b", "tries": "3"})
    assert len(data) == 1024
    assert data.startswith(b"# GRUB Environment Block\ngood=a\nnext=b\ntries=3\n####")
    assert grub.load_env(data) == {"good": "a", "next": "b", "tries": "3"}


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text("ab\\ =#", max_size=9))
)
def test_grubenv_keeps_what_others_wrote_to_it(env: dict[str, str]) -> None:
    assert grub.load_env(grub.dump_env(env)) == env


def test_grubenv_that_is_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        grub.dump_env({"good": "x" * 1024})


def test_a_command_line_is_quoted_for_grub() -> None:
    assert grub.command_line('a="b c" d=$e f\\g\n') == (
        'set proa_cmdline="a=\\"b c\\" d=\\$e f\\\\g"\n'
    )


def test_the_sections_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "uki"
    release = make_release("1.2.3")
    path.write_bytes(release.content["proa.efi"])
    assert set(pe.sections(path)) == {".osrel", ".cmdline", ".linux", ".initrd"}
    assert pe.read_text(path, ".cmdline").startswith(f"usrhash={release.root_hash}")
    assert pe.read_text(path, ".nothing") == ""


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=40))
def test_a_damaged_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, offset: int, garbage: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    data = bytearray(make_uki("1.0.0", "00" * 32, size=64))
    data[offset : offset + len(garbage)] = garbage
    path.write_bytes(data)
    try:
        found = pe.sections(path)
    except pe.PeError:
        return
    assert all(s.offset + s.size <= len(data) for s in found.values())


@pytest.mark.parametrize("data", [b"", b"MZ", b"#!/bin/sh\n", make_pe({".a": b"x"})[:100]])
def test_what_is_no_image_is_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image.efi"
    path.write_bytes(data)
    with pytest.raises(pe.PeError, match=r"image\.efi"):
        pe.sections(path)
