"""What the payload benchmark takes as old and new, and how it matches files."""

from __future__ import annotations

import bz2
import urllib.request
from pathlib import Path

import pytest
from benchmarks import pairs, payload, peers, ranges
from benchmarks.pairs import Offer
from benchmarks.peers import Outcome, Usage

INDEX = """\
Package: libssl3t64
Source: openssl
Version: 3.5.9-1~deb13u1
Description: a library

Package: runc
Source: runc (1.1.15+ds1-2)
Version: 1.1.15+ds1-2+b4
"""


def test_an_index_is_read_with_the_source_of_each_package() -> None:
    assert list(pairs.parse_index(INDEX)) == [
        Offer("libssl3t64", "3.5.9-1~deb13u1", "openssl"),
        Offer("runc", "1.1.15+ds1-2+b4", "runc"),
    ]


def test_the_old_release_has_the_lowest_version_by_debians_order() -> None:
    offers = [
        Offer("libssl3t64", "3.5.10-1", "openssl"),
        Offer("libssl3t64", "3.5.9-1~deb13u1", "openssl"),
        Offer("libssl3t64", "3.5.9-1", "openssl"),
        Offer("bash", "5.2", "bash"),
        Offer("unwanted", "1", "unwanted"),
        Offer("unwanted", "2", "unwanted"),
    ]
    assert pairs.held_back(["bash", "libssl3t64"], offers) == [offers[1]]


def test_the_older_kernel_is_of_the_same_flavour() -> None:
    offers = [
        Offer(f"linux-image-{version}+deb13-{flavour}", version, "linux")
        for version in ("6.12.117", "6.12.98")
        for flavour in ("amd64", "cloud-amd64", "cloud-amd64-dbg", "rt-amd64")
    ]
    found = pairs.older_kernel("linux-image-cloud-amd64", offers)
    assert found == "linux-image-6.12.98+deb13-cloud-amd64"


def test_files_are_matched_over_versions_in_their_paths(tmp_path: Path) -> None:
    contents = {
        "old/modules/6.12.107/ext4.ko": "one",
        "old/bin/same": "same",
        "old/bin/here": "moved",
        "new/modules/6.12.117/ext4.ko": "two",
        "new/bin/same": "same",
        "new/bin/there": "moved",
        "new/bin/fresh": "fresh",
    }
    for name, text in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    changed, added = peers.matched(tmp_path / "old", tmp_path / "new")
    assert changed == [("modules/6.12.107/ext4.ko", "modules/6.12.117/ext4.ko")]
    assert added == ["bin/fresh"]


def test_a_bsdiff_patch_is_unpacked_stream_by_stream() -> None:
    streams = [bz2.compress(word) for word in (b"control", b"difference", b"extra")]
    lengths = [len(streams[0]), len(streams[1]), 99]
    header = b"BSDIFF40" + b"".join(length.to_bytes(8, "little") for length in lengths)
    assert peers.plain_bsdiff(header + b"".join(streams)) == header + b"controldifferenceextra"


@pytest.mark.parametrize(
    ("what", "name"), [("mode", "file"), ("content", "file"), ("link", "link"), ("extra", "odd")]
)
def test_trees_that_differ_are_told_apart(tmp_path: Path, what: str, name: str) -> None:
    for tree in (tmp_path / "one", tmp_path / "other"):
        tree.mkdir()
        (tree / "file").write_text("text")
        (tree / "link").symlink_to("file")
    one = tmp_path / "one"
    assert peers.differs(one, tmp_path / "other") == ""
    match what:
        case "mode":
            (one / "file").chmod(0o600)
        case "content":
            (one / "file").write_text("TEXT")
        case "link":
            (one / "link").unlink()
            (one / "link").symlink_to("elsewhere")
        case "extra":
            (one / "odd").touch()
    assert peers.differs(one, tmp_path / "other") == name


def test_the_server_answers_several_ranges_and_counts_what_it_sends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with ranges.serving(tmp_path) as server:
        request = urllib.request.Request(
            f"{server.url}/file", headers={"Range": "bytes=10-11,50-52"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            body = reply.read()
    assert (reply.status, server.sent) == (206, len(body))
    parts = [part.split(b"\r\n\r\n", 1) for part in body.split(b"\r\n--proa-bench")[1:-1]]
    assert [content for _, content in parts] == [bytes([10, 11]), bytes([50, 51, 52])]
    assert b"Content-Range: bytes 50-52/100" in parts[1][0]


def test_the_best_peer_is_neither_proa_nor_the_reference() -> None:
    rows = [
        payload.Row(name, "usr", Outcome(size, Usage(), None))
        for name, size in (("proa", 1), ("bsdiff", 2), ("ostree", 4), ("xdelta3", 8))
    ]
    assert payload.best_of(rows, "usr") == 4
    # Who was not measured on both parts has no sum.
    assert payload.best_of(rows, "all") is None
    boot = payload.Row("xdelta3", "boot", Outcome(16, Usage(), None))
    assert payload.best_of([*rows, boot], "all") == 24
