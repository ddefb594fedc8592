"""Which payloads a release is published with, and by which compressor they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from proa.factory import compressor, payload_set
from proa.factory.repository import Listed, Payload
from proa.wire.codec import Zstd
from proa.wire.errors import UserError
from proa.wire.manifest import Manifest, Package
from proa.wire.version import parse
from support import erofs_samples, payload_releases


def listed(*names: str, payloads: tuple[Payload, ...] = ()) -> list[Listed]:
    return [Listed(name, 1, withdrawn=False, payloads=payloads) for name in names]


def test_deltas_come_from_the_latest_older_versions() -> None:
    there = listed("1.10.0", "1.9.0", "1.8.0", "2.0.0", "1.2.0")
    assert payload_set.missing(parse("1.11.0"), there, 3, full=True) == [
        payload_set.FULL,
        "1.10.0",
        "1.9.0",
        "1.8.0",
    ]
    assert payload_set.missing(parse("1.2.0"), there, 3, full=False) == []


def test_no_delta_comes_from_a_withdrawn_version() -> None:
    there = [*listed("1.0.0"), Listed("1.1.0", 0, withdrawn=True)]
    assert payload_set.missing(parse("1.2.0"), there, 3, full=False) == ["1.0.0"]


def test_what_is_there_is_not_made_again() -> None:
    have = (
        Payload("full.payload", 1, "", "", ""),
        Payload("from-1.payload", 1, "1" * 64, "1.1.0", ""),
        # From a version that nobody knows any more.
        Payload("from-2.payload", 1, "2" * 64, "", ""),
    )
    there = [*listed("1.0.0", "1.1.0"), *listed("1.2.0", payloads=have)]
    assert payload_set.missing(parse("1.2.0"), there, 3, full=True) == ["1.0.0"]
    only_delta = [*listed("1.0.0"), *listed("1.2.0", payloads=have[2:])]
    assert payload_set.FULL in payload_set.missing(parse("1.2.0"), only_delta, 3, full=True)


def content(*packages: Package) -> Manifest:
    return Manifest(parse("1.0.0"), "amd64", 0, "0" * 64, "6.1", {}, packages)


def test_an_image_without_a_compressor_takes_the_hosts_unless_it_had_another(
    tmp_path: Path,
) -> None:
    image = tmp_path / "usr.erofs"
    image.write_bytes(payload_releases.image("1.0.0"))
    host = Zstd().version
    assert compressor.of_image(image, content(), tmp_path).name == f"zstd {host}"
    same = Package("libzstd1", f"{host}+dfsg-1", "amd64", "libzstd", "")
    assert compressor.of_image(image, content(same), tmp_path).name == f"zstd {host}"
    other = Package("libzstd1", "1.3.3+dfsg-2", "amd64", "libzstd", "")
    with pytest.raises(UserError, match=r"has libzstd 1\.3\.3"):
        compressor.of_image(image, content(other), tmp_path)


def test_an_image_that_is_none_is_told(tmp_path: Path) -> None:
    image = tmp_path / "usr.erofs"
    image.write_bytes(bytes(8192))
    with pytest.raises(UserError, match="not an erofs image"):
        compressor.of_image(image, content(), tmp_path)
    image.write_bytes(erofs_samples.image("zstd")[:4096])
    with pytest.raises(UserError, match=str(image)):
        compressor.of_image(image, content(), tmp_path)
