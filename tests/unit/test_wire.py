"""Versions are ordered as Semantic Versioning says; a manifest is whole or refused by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.wire import manifest
from proa.wire.version import Version, VersionError, parse

numbers = st.integers(0, 999_999_999)
identifiers = st.from_regex(r"[0-9A-Za-z]{1,6}", fullmatch=True)
versions = st.builds(
    Version, numbers, numbers, numbers, st.lists(identifiers, max_size=3).map(tuple)
)


@given(versions)
def test_a_version_is_what_it_prints(version: Version) -> None:
    assert parse(str(version)) == version


def test_versions_are_ordered_as_semver_says() -> None:
    # The example of Semantic Versioning 2.0.0, section 11, and what lies round it.
    ordered = [
        "0.9.9",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.1",
        "1.2.0",
        "1.10.0",
    ]
    assert [str(v) for v in sorted(parse(text) for text in reversed(ordered))] == ordered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "01.2.3",
        "1.2.3-",
        "1.2.3+b",
        "v1.2.3",
        "1.2.3\n",
        "-1.2.3",
        "1.2.3-a..b",
        "9" * 99,
    ],
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(VersionError):
        parse(text)


def sample() -> manifest.Manifest:
    return manifest.Manifest(
        version=parse("1.2.3"),
        architecture="amd64",
        source_date_epoch=1_700_000_000,
        root_hash="f7eb933dd3a35f09807b9246c2016412ac71e2ebf08d0f33ec8e708797a81449",
        kernel="6.12",
        files={manifest.USR: manifest.File(10, "a" * 64)},
        packages=(manifest.Package("bash", "5", "amd64", "bash", "5"),),
        inputs={"recipe": "x"},
        channels=("alpha",),
    )


def test_a_manifest_is_what_was_written() -> None:
    assert manifest.load(manifest.dump(sample())) == sample()


def test_a_manifest_of_before_there_were_channels_is_for_any() -> None:
    document = json.loads(manifest.dump(sample()))
    del document["channels"]
    assert manifest.load(json.dumps(document).encode()).channels == ()


def test_the_partition_uuids_are_the_halves_of_the_root_hash() -> None:
    assert str(sample().usr_uuid) == "f7eb933d-d3a3-5f09-807b-9246c2016412"
    assert str(sample().verity_uuid) == "ac71e2eb-f08d-0f33-ec8e-708797a81449"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "proa-release/2"}, "proa-release/2"),
        ({"version": "x"}, "version"),
        ({"architecture": 5}, "architecture"),
        ({"usr": {"root_hash": "zz"}}, "usr.root_hash"),
        ({"usr": []}, "usr"),
        ({"source_date_epoch": -1}, "source_date_epoch"),
        ({"source_date_epoch": True}, "source_date_epoch"),
        ({"files": {"../../etc/passwd": {"size": 1, "sha256": "a" * 64}}}, "plain file name"),
        ({"files": {"a": {"size": "1", "sha256": "a" * 64}}}, "files.a.size"),
        ({"files": {"a": {"size": 1, "sha256": "A" * 64}}}, "files.a.sha256"),
        ({"packages": [1]}, "packages[0]"),
        ({"channels": "alpha"}, "channels"),
        ({"channels": ["alpha", "../beta"]}, "cannot name a channel"),
    ],
)
def test_a_bad_manifest_is_refused_by_field(change: dict[str, Any], words: str) -> None:
    document = json.loads(manifest.dump(sample())) | change
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.load(json.dumps(document).encode())
    assert words in str(caught.value)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda x: (
                st.lists(x, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["format", "version", "files", "usr"]), x, max_size=4
                )
            ),
        ).map(lambda v: json.dumps(v).encode()),
    )
)
def test_any_bytes_are_a_manifest_or_a_clear_refusal(data: bytes) -> None:
    with pytest.raises(manifest.ManifestError):
        manifest.load(data)


def test_a_huge_or_deep_manifest_is_refused() -> None:
    with pytest.raises(manifest.ManifestError):
        manifest.load(b"[" * 200_000)
    with pytest.raises(manifest.ManifestError, match="at most"):
        manifest.load(bytes(manifest.MAX_BYTES + 1))
