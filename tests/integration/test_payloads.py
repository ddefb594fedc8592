"""Payloads from end to end: made at publish, kept, looked into, applied to the very same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from proa.cli.main import main
from proa.factory import payload
from proa.wire import manifest
from support import payload_releases


class Site:
    """A home with keys, and two releases that payloads can be made between."""

    def __init__(self, path: Path, output: pytest.CaptureFixture[str]) -> None:
        self.path, self._output = path, output
        self.old = payload_releases.make_release(path / "old", "1.0.0")
        self.new = payload_releases.make_release(path / "new", "1.1.0")
        self.repository = path / "home" / "repository"

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Run ``proa``; return its exit status and what it said on stdout and stderr."""
        self._output.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = self._output.readouterr()
        return status, said.out, said.err

    def ok(self, *arguments: str | Path) -> str:
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def delta(self) -> Path:
        out = self.path / "delta"
        self.ok("payload", "make", self.old, self.new, "--out", out)
        return out

    def listed(self) -> list[Any]:
        versions: list[Any] = json.loads(self.ok("repo", "list", "--json"))["versions"]
        return versions


@pytest.fixture
def site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Site:
    monkeypatch.setenv("PROA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PROA_CACHE", str(tmp_path / "cache"))
    return Site(tmp_path, capsys)


def same(made: Path, release: Path) -> bool:
    return all(
        (made / name).read_bytes() == (release / name).read_bytes()
        for name in manifest.PAYLOAD_FILES
    )


def test_two_releases_are_published_with_payloads_that_lead_from_one_to_the_other(
    site: Site, tmp_path: Path
) -> None:
    site.ok("keys", "init")
    first = json.loads(site.ok("publish", site.old, "--json"))
    assert list(first["payloads"]) == ["full.payload"]
    planned = json.loads(site.ok("publish", site.new, "--dry-run", "--json"))
    assert planned["to_make"] == ["Full payload of 1.1.0", "Delta from 1.0.0 to 1.1.0"]
    second = json.loads(site.ok("publish", site.new, "--json"))
    found = site.listed()[1]["payloads"]
    assert [p["origin"] for p in found] == ["", "1.0.0"]
    assert {p["name"]: p["size"] for p in found} == second["payloads"]
    whole = sum((site.new / name).stat().st_size for name in manifest.PAYLOAD_FILES)
    assert found[1]["size"] < whole / 2
    assert "from 1.0.0" in site.ok("repo", "list")
    for entry in found:
        (file,) = site.repository.glob(f"targets/1.1.0/*.{entry['name']}")
        site.ok("payload", "verify", file, "--old", site.old, "--new", site.new)
        out = tmp_path / f"out-{entry['name']}"
        site.ok("payload", "apply", file, "--source", site.old, "--out", out)
        assert same(out, site.new)


def test_publishing_again_makes_only_what_is_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.ok("keys", "init")
    site.ok("publish", site.old, "--no-payloads")
    site.ok("publish", site.new, "--no-full", "--deltas", "0")
    assert [v["payloads"] for v in site.listed()] == [[], []]
    done = json.loads(site.ok("publish", site.new, "--no-full", "--json"))
    assert not done["new"]
    assert [name.partition("-")[0] for name in done["payloads"]] == ["from"]
    with monkeypatch.context() as patch:
        patch.delattr(payload, "make")
        done = json.loads(site.ok("publish", site.new, "--no-full", "--json"))
    assert done["payloads"] == {}


def test_a_stop_while_payloads_are_made_leaves_the_repository_and_keeps_the_patches(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.ok("keys", "init")
    site.ok("publish", site.old, "--no-payloads")
    before = {p for p in site.repository.rglob("*") if "patches" not in p.parts}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(payload, "_pack_all", stop)
        status, _, said = site.run("publish", site.new, "--no-full")
    assert status == 130
    assert "stopped" in said
    assert {p for p in site.repository.rglob("*") if "patches" not in p.parts} == before
    kept = {p: p.stat().st_mtime_ns for p in site.repository.glob("patches/*/*")}
    assert kept
    assert not list((site.path / "cache").glob("work-*"))
    site.ok("publish", site.new, "--no-full")
    assert {p: p.stat().st_mtime_ns for p in site.repository.glob("patches/*/*")} == kept


def test_an_image_alone_is_a_source_as_well(site: Site, tmp_path: Path) -> None:
    delta, out = site.delta(), tmp_path / "out"
    usr = shutil.copy(site.old / manifest.USR, tmp_path / "partition")
    uki = site.old / manifest.UKI
    site.ok("payload", "apply", delta, "--source", usr, "--uki", uki, "--out", out)
    assert same(out, site.new)
    status, _, said = site.run("payload", "apply", delta, "--source", usr, "--out", tmp_path / "x")
    assert status == 10
    assert "proa.efi, which was not given" in said
    assert "altered" not in said
    assert "--uki" in said


def test_a_wrong_or_altered_source_is_refused_and_nothing_is_left(
    site: Site, tmp_path: Path
) -> None:
    delta, out = site.delta(), tmp_path / "out"
    out.mkdir()
    altered = shutil.copytree(site.old, tmp_path / "altered")
    data = bytearray((altered / manifest.USR).read_bytes())
    data[len(data) // 2] ^= 1
    (altered / manifest.USR).write_bytes(data)
    for source, words in (
        (None, "starts from another release"),
        (site.new, "root hash"),
        (altered, "root hash"),
        (altered / manifest.USR, "root hash"),
        (shutil.copy(altered / manifest.USR, tmp_path / "alone"), "the source was altered"),
        (tmp_path / "nothing", "is missing"),
        (site.old / manifest.MANIFEST, "bytes"),
    ):
        where = [] if source is None else ["--source", source, "--uki", site.old / manifest.UKI]
        status, _, said = site.run("payload", "apply", delta, *where, "--out", out)
        assert (status, words in said) == (10, True), said
        assert list(out.iterdir()) == []


def test_a_damaged_payload_is_refused(site: Site, tmp_path: Path) -> None:
    data = site.delta().read_bytes()
    for damaged, words in (
        (data[:-1], "is cut off"),
        (data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
        (data[1:], "not a payload"),
        (b"", "not a payload"),
    ):
        file = tmp_path / "damaged"
        file.write_bytes(damaged)
        actions: tuple[list[str | Path], ...] = (
            ["apply", file, "--source", site.old, "--out", tmp_path / "out"],
            ["verify", file, "--old", site.old, "--new", site.new],
            ["show", file],
        )
        for action in actions:
            status, _, said = site.run("payload", *action)
            assert (status, words in said) == (9, True), said
    status, _, said = site.run("payload", "show", tmp_path / "nothing")
    assert (status, "cannot be read" in said) == (9, True)


def test_show_says_where_the_bytes_are_and_leaves_none_out(site: Site, tmp_path: Path) -> None:
    delta, picture = site.delta(), tmp_path / "why.svg"
    owners = {"thing": ["lib/libthing.so.1.1"], "tool": ["bin/tool", "bin/new"]}
    (site.new / "files.json").write_text(json.dumps(owners))
    releases: list[str | Path] = ["--old", site.old, "--new", site.new]
    shown = json.loads(site.ok("payload", "show", delta, *releases, "--json", "--picture", picture))
    assert shown["size"] == delta.stat().st_size
    assert sum(f["bytes"] for f in shown["files"]) == pytest.approx(shown["size"], abs=5)
    for parts in (shown["packages"], shown["kinds"]):
        assert sum(parts.values()) == pytest.approx(shown["size"], abs=5)
    # What is new comes whole, and is told by its name and package.
    (new,) = [f for f in shown["files"] if (f["file"], f["kind"]) == ("bin/new", "new content")]
    assert (new["package"], new["made"]) == ("tool", 9000)
    made = {f["file"]: f["kind"] for f in shown["files"]}
    assert made["lib/modules/6.1.1/vmlinuz"] == "patch"
    assert "(boot image: lib/modules/6.1.1/vmlinuz)" in made
    text = site.ok("payload", "show", delta, *releases, "--top", "1")
    assert "Delta from 1.0.0 to 1.1.0" in text
    assert "--top N shows more" in text
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    assert "bin/new" in drawn
    # Without the release there are kinds, and no names.
    nameless = json.loads(site.ok("payload", "show", delta, "--json"))
    assert nameless["kinds"] == shown["kinds"]


@pytest.mark.parametrize("listed", [None, "{", "[]"])
def test_show_names_directories_where_the_release_does_not_name_packages(
    site: Site, listed: str | None
) -> None:
    if listed is not None:
        (site.new / "files.json").write_text(listed)
    shown = site.ok("payload", "show", site.delta(), "--new", site.new)
    assert "lib/modules" in shown
    assert ("directories in place of packages" in shown) == (listed is None)


def test_verify_tells_a_payload_for_another_release(site: Site) -> None:
    status, _, said = site.run(
        "payload", "verify", site.delta(), "--old", site.old, "--new", site.old
    )
    assert status == 9
    assert "makes another usr.erofs than that of 1.0.0" in said
    status, _, said = site.run("payload", "verify", site.delta(), "--new", site.new)
    assert (status, "name its directory with --old" in said) == (10, True)


def test_an_altered_release_is_no_ground_for_a_payload(site: Site, tmp_path: Path) -> None:
    (site.old / manifest.UKI).write_bytes(b"MZ")
    status, _, said = site.run("payload", "make", site.old, site.new, "--out", tmp_path / "payload")
    assert status == 4
    assert "is not the file that was built" in said
    assert not (tmp_path / "payload").exists()


def test_wrong_usage_is_told(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "payload"
    wrong: tuple[list[str | Path], ...] = (
        ["make", site.new, "--out", out],
        ["make", "--full", site.old, site.new, "--out", out],
        ["make", site.old, site.new],
        ["apply", out],
    )
    for arguments in wrong:
        assert site.run("payload", *arguments)[0] == 2
    assert site.run("publish", site.new, "--deltas", "-1")[0] == 2
