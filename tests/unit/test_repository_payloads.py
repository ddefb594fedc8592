"""Payloads in the repository: signed with what a machine chooses by, and only for their release."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proa.factory import atomic, keys, repository
from proa.factory.repository import PublishError
from proa.wire import manifest
from proa.wire import payload as form
from proa.wire.errors import UserError
from support.releases import make_payload, make_release
from support.tuf_client import Client

NOW = datetime.now(UTC)


class Site:
    """Two releases, the older one published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys, self.repository = path / "keys", path / "repository"
        self.anchor = path / "anchor.json"
        self.anchor.write_bytes(keys.init(self.keys, NOW).read_bytes())
        self.old = make_release(path / "old", "1.0.0")
        self.new = make_release(path / "new", "1.1.0")
        self.source = manifest.load((self.old / manifest.MANIFEST).read_bytes()).root_hash
        self.full = make_payload(self.new, path / "full")
        self.delta = make_payload(self.new, path / "delta", self.source)
        self.publish(self.old)

    def publish(self, release: Path, *payloads: Path, **options: Any) -> repository.Published:
        return repository.publish(
            release, self.repository, self.keys, NOW, payloads=payloads, **options
        )

    def add(self, name: str, *payloads: Path) -> dict[str, int]:
        return repository.add_payloads(name, payloads, self.repository, self.keys, NOW)

    def client(self, name: str = "machine") -> Client:
        return Client(self.path / name, self.anchor, self.repository)

    @property
    def delta_name(self) -> str:
        return f"from-{self.source[:16]}.payload"

    def signed(self) -> dict[str, Any]:
        newest = max(
            self.repository.glob("metadata/*.targets.json"),
            key=lambda p: int(p.name.partition(".")[0]),
        )
        targets: dict[str, Any] = json.loads(newest.read_bytes())["signed"]["targets"]
        return targets

    def listed(self, name: str) -> repository.Listed:
        return next(v for v in repository.list_versions(self.repository) if v.version == name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_release_and_its_payloads_become_visible_at_once(site: Site) -> None:
    done = site.publish(site.new, site.full, site.delta)
    assert done.new
    assert done.payloads == {
        "full.payload": site.full.stat().st_size,
        site.delta_name: site.delta.stat().st_size,
    }
    client = site.client()
    assert client.fetch("1.1.0/full.payload") == site.full.read_bytes()
    assert client.fetch(f"1.1.0/{site.delta_name}") == site.delta.read_bytes()


def test_what_a_machine_chooses_by_is_signed(site: Site) -> None:
    site.publish(site.new, site.delta)
    target = site.signed()[f"1.1.0/{site.delta_name}"]
    data = site.delta.read_bytes()
    assert target["length"] == len(data)
    about = target["custom"]["proa"]
    length = about["head"]["length"]
    assert about == {
        "head": {"length": length, "sha256": hashlib.sha256(data[:length]).hexdigest()},
        "encoder": "zstd 1.5.7",
        "source": site.source,
        "from": "1.0.0",
        "scratch": 1000,
    }
    assert form.load_head(data[:length]).source.hex() == site.source


def test_payloads_may_come_later_and_the_same_one_again_changes_nothing(site: Site) -> None:
    site.publish(site.new)
    assert site.add("1.1.0", site.full) == {"full.payload": site.full.stat().st_size}
    before = site.signed()
    metadata = sorted(p.name for p in (site.repository / "metadata").iterdir())
    assert site.add("1.1.0", site.full) == {}
    assert site.publish(site.new, site.full).payloads == {}
    assert sorted(p.name for p in (site.repository / "metadata").iterdir()) == metadata
    assert site.publish(site.new, site.full, site.delta).payloads.keys() == {site.delta_name}
    assert site.signed().keys() - before.keys() == {f"1.1.0/{site.delta_name}"}


def test_a_payload_that_was_made_anew_takes_the_place_of_the_old_one(site: Site) -> None:
    site.publish(site.new, site.delta)
    better = make_payload(site.new, site.path / "better", site.source, b"b")
    assert site.add("1.1.0", better).keys() == {site.delta_name}
    assert site.client().fetch(f"1.1.0/{site.delta_name}") == better.read_bytes()
    # A machine that is in the middle of the old one finds the rest of it.
    assert len(list(site.repository.glob(f"targets/1.1.0/*.{site.delta_name}"))) == 2


def test_a_payload_for_another_release_is_refused_by_name(site: Site) -> None:
    stranger = make_payload(make_release(site.path / "x", "1.1.0", content=b"x"), site.path / "p")
    for attempt in (
        lambda: site.publish(site.new, site.full, stranger),
        lambda: site.add("1.0.0", site.full),
    ):
        before = site.signed()
        with pytest.raises(PublishError, match=r"makes another usr\.erofs than that of") as caught:
            attempt()
        assert caught.value.code == repository.PAYLOAD_EXIT
        assert site.signed() == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "is cut off"),
        (lambda data: data + b"x", "something behind its end"),
        (lambda data: data[:-1] + b"x", r"damaged: group 1 of proa\.efi"),
        (lambda data: b"x" + data[1:], "not a payload"),
        (lambda data: data[:7] + b"2" + data[8:], "format of another version"),
        (lambda data: data[:50], "ends in the middle"),
        (lambda data: b"", "not a payload"),
    ],
)
def test_a_damaged_payload_is_refused(site: Site, damage: Any, words: str) -> None:
    site.full.write_bytes(damage(site.full.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        site.publish(site.new, site.full)
    assert caught.value.code == repository.PAYLOAD_EXIT
    assert site.client().fetch("1.1.0/manifest.json") is None


def test_a_payload_needs_a_published_version(site: Site) -> None:
    with pytest.raises(PublishError, match=r"no version 1\.1\.0") as caught:
        site.add("1.1.0", site.full)
    assert caught.value.code == repository.UNKNOWN_EXIT


def test_withdrawing_takes_the_payloads_along_and_leaves_those_that_start_there(site: Site) -> None:
    site.publish(site.new, site.full, site.delta)
    repository.withdraw("1.0.0", site.repository, site.keys, NOW)
    assert site.client().fetch(f"1.1.0/{site.delta_name}") == site.delta.read_bytes()
    assert site.listed("1.1.0").payloads[1].origin == "1.0.0"
    # Made anew, it still says where it comes from.
    site.add("1.1.0", make_payload(site.new, site.path / "again", site.source, b"again"))
    assert site.listed("1.1.0").payloads[1].origin == "1.0.0"
    repository.withdraw("1.1.0", site.repository, site.keys, NOW)
    assert not [path for path in site.signed() if path.startswith("1.1.0/")]
    assert site.publish(site.new, site.full).new, "the same release may come back"


def test_a_list_tells_payloads_from_the_release(site: Site) -> None:
    site.publish(site.new, site.delta, site.full)
    found = site.listed("1.1.0")
    assert [(p.name, p.origin, p.size) for p in found.payloads] == [
        ("full.payload", "", site.full.stat().st_size),
        (site.delta_name, "1.0.0", site.delta.stat().st_size),
    ]
    assert found.size == sum(
        (site.new / name).stat().st_size for name in (manifest.MANIFEST, *manifest.PAYLOAD_FILES)
    )
    assert site.listed("1.0.0").payloads == ()


@pytest.mark.parametrize("step", range(4))  # payload, targets, snapshot, timestamp
def test_a_stop_while_payloads_are_added_leaves_the_old_repository_whole(
    site: Site, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish(site.new)
    left = [step]
    write, copy = atomic.write, atomic.copy

    def stopping(real: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write", stopping(write))
        patch.setattr(atomic, "copy", stopping(copy))
        with pytest.raises(KeyboardInterrupt):
            site.add("1.1.0", site.full)
    client = site.client()
    assert client.fetch("1.1.0/full.payload") is None
    assert client.fetch("1.1.0/manifest.json") == (site.new / manifest.MANIFEST).read_bytes()
    assert site.add("1.1.0", site.full)
    assert client.fetch("1.1.0/full.payload") == site.full.read_bytes()


def test_a_published_release_can_be_laid_out_again(site: Site, tmp_path: Path) -> None:
    found = repository.find_release(site.repository, "1.0.0", tmp_path / "found")
    repository.verify_release(found)
    (published,) = site.repository.glob("targets/1.0.0/*.usr.erofs")
    published.write_bytes(b"altered")
    with pytest.raises(PublishError, match="not what was signed") as caught:
        repository.find_release(site.repository, "1.0.0", tmp_path / "again")
    assert caught.value.code == repository.REPOSITORY_EXIT
