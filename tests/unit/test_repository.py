"""What is published can be verified by a real client, never changes, and survives a crash."""

from __future__ import annotations

import json
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError, UnsignedMetadataError

from proa.factory import atomic, keys, repository
from proa.factory.keys import KeysError
from proa.factory.repository import Lifetimes, PublishError
from proa.wire import manifest
from support.releases import make_release
from support.tuf_client import Client

# The client reads the real clock, so what it is to accept is signed now.
NOW = datetime.now(UTC)


class Site:
    """Keys, a repository, and a machine whose image has the first root in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = path / "keys"
        self.repository = path / "repository"
        self.anchor = path / "anchor.json"
        self.anchor.write_bytes(keys.init(self.keys, NOW).read_bytes())

    def publish(self, name: str, **options: object) -> repository.Published:
        release = make_release(self.path / f"release-{name}", name)
        return repository.publish(release, self.repository, self.keys, NOW, **options)  # type: ignore[arg-type]

    def client(self, name: str = "machine") -> Client:
        return Client(self.path / name, self.anchor, self.repository)

    def has(self, client: Client, name: str) -> bool:
        found = client.fetch(f"{name}/{manifest.UKI}")
        return found == (self.path / f"release-{name}" / manifest.UKI).read_bytes()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_client_gets_what_was_published(site: Site) -> None:
    published = site.publish("1.0.0")
    assert published.new
    client = site.client()
    for name in (manifest.MANIFEST, *manifest.PAYLOAD_FILES):
        expected = (site.path / "release-1.0.0" / name).read_bytes()
        assert client.fetch(f"1.0.0/{name}") == expected
        assert published.files[name] == len(expected)
    assert client.fetch("1.0.0/disk.raw") is None


def test_files_lie_where_any_web_server_finds_them(site: Site) -> None:
    site.publish("1.0.0")
    assert sorted(p.name for p in (site.repository / "metadata").iterdir()) == [
        "1.root.json",
        "1.snapshot.json",
        "1.targets.json",
        "timestamp.json",
    ]
    release = manifest.load((site.path / "release-1.0.0" / "manifest.json").read_bytes())
    usr = release.files[manifest.USR]
    file = site.repository / "targets" / "1.0.0" / f"{usr.sha256}.usr.erofs"
    assert file.stat().st_size == usr.size
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_client_follows_from_release_to_release(site: Site) -> None:
    site.publish("1.0.0")
    client = site.client()
    assert site.has(client, "1.0.0")
    assert client.fetch("1.1.0/manifest.json") is None
    site.publish("1.1.0")
    assert site.has(client, "1.1.0")
    assert site.has(client, "1.0.0")


def test_publishing_the_same_bytes_again_changes_nothing(site: Site) -> None:
    site.publish("1.0.0")
    before = _files(site.repository)
    assert site.publish("1.0.0").new is False
    assert _files(site.repository) == before


def test_publishing_other_bytes_under_the_same_version_is_refused(site: Site) -> None:
    site.publish("1.0.0")
    before = _files(site.repository)
    other = make_release(site.path / "other", "1.0.0", content=b"other")
    with pytest.raises(PublishError, match="other content") as caught:
        repository.publish(other, site.repository, site.keys, NOW)
    assert caught.value.code == repository.TAKEN_EXIT
    assert _files(site.repository) == before


@pytest.mark.parametrize("name", manifest.PAYLOAD_FILES)
def test_an_altered_file_is_refused(site: Site, name: str) -> None:
    release = make_release(site.path / "release", "1.0.0")
    data = bytearray((release / name).read_bytes())
    data[len(data) // 2] ^= 1
    (release / name).write_bytes(data)
    with pytest.raises(PublishError, match=f"{name} is not the file that was built") as caught:
        repository.publish(release, site.repository, site.keys, NOW)
    assert caught.value.code == repository.RELEASE_EXIT
    assert not site.repository.exists()


def test_a_file_that_changes_while_it_is_copied_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("1.0.0")
    before = _files(site.repository)
    release = make_release(site.path / "release", "1.1.0")

    def sweep(_: Path) -> None:  # Runs between the check of the release and the copy.
        (release / manifest.USR).write_bytes(b"late")

    monkeypatch.setattr(atomic, "sweep", sweep)
    with pytest.raises(PublishError, match="changed while") as caught:
        repository.publish(release, site.repository, site.keys, NOW)
    assert caught.value.code == repository.RELEASE_EXIT
    assert _metadata(_files(site.repository)) == _metadata(before)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: (r / "manifest.json").unlink(), "cannot read"),
        (lambda r: (r / "manifest.json").write_text("{}"), "format"),
        (lambda r: (r / "usr.verity").unlink(), "usr.verity"),
        (lambda r: _drop_file(r, "proa.efi"), "does not name proa.efi"),
    ],
)
def test_an_incomplete_release_is_refused(site: Site, damage: object, words: str) -> None:
    release = make_release(site.path / "release", "1.0.0")
    assert callable(damage)
    damage(release)
    with pytest.raises(PublishError, match=words) as caught:
        repository.publish(release, site.repository, site.keys, NOW)
    assert caught.value.code == repository.RELEASE_EXIT


def _drop_file(release: Path, name: str) -> None:
    document = json.loads((release / "manifest.json").read_bytes())
    del document["files"][name]
    (release / "manifest.json").write_text(json.dumps(document))


def test_a_dry_run_checks_all_and_writes_nothing(site: Site) -> None:
    assert site.publish("1.0.0", dry_run=True).new
    assert not site.repository.exists()
    (site.keys / "targets.pem").unlink()
    with pytest.raises(KeysError, match="targets key"):
        site.publish("1.0.0", dry_run=True)


# --- Crashes and company ------------------------------------------------------------------------


def _stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop, as a kill would, at the ``step``-th file that is about to become visible."""
    left = [step]
    real_write, real_copy = atomic.write, atomic.copy

    def step_or_stop() -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        step_or_stop()
        real_write(path, data, mode=mode)

    def copy(source: Path, path: Path, *, accept: object) -> None:
        step_or_stop()
        real_copy(source, path, accept=accept)  # type: ignore[arg-type]

    patch.setattr(atomic, "write", write)
    patch.setattr(atomic, "copy", copy)


# Four target files, then targets, snapshot, timestamp.
@pytest.mark.parametrize("step", range(7))
def test_a_stop_at_any_step_leaves_the_old_repository_whole(
    site: Site, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("1.0.0")
    client = site.client()
    assert site.has(client, "1.0.0")
    with monkeypatch.context() as patch:
        _stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            site.publish("1.1.0")
    for reader in (client, site.client("new machine")):
        assert site.has(reader, "1.0.0")
        assert reader.fetch("1.1.0/manifest.json") is None
    assert site.publish("1.1.0").new
    for reader in (client, site.client("newer machine")):
        assert site.has(reader, "1.1.0")


@pytest.mark.parametrize("role", keys.ROLES)
@pytest.mark.parametrize("step", range(4))  # targets, snapshot, timestamp, root
def test_a_stop_while_a_rotation_arrives_leaves_a_readable_repository(
    site: Site, role: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("1.0.0")
    client = site.client()
    assert site.has(client, "1.0.0")
    keys.rotate(site.keys, role, NOW)
    with monkeypatch.context() as patch:
        _stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            repository.resign(site.repository, site.keys, NOW)
    for reader in (client, site.client("new machine")):
        assert site.has(reader, "1.0.0")
    repository.resign(site.repository, site.keys, NOW)
    for reader in (client, site.client("newer machine")):
        assert site.has(reader, "1.0.0")
    assert (site.repository / "metadata" / "2.root.json").exists()


def test_what_a_killed_write_left_is_swept_up(site: Site) -> None:
    site.publish("1.0.0")
    leftovers = [site.repository / "metadata" / ".new-x", site.repository / "targets" / ".new-y"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    site.publish("1.1.0")
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_second_publish_at_the_same_time_is_refused_and_the_first_is_whole(site: Site) -> None:
    site.publish("1.0.0")
    refused = PublishError("unused")
    with (
        atomic.lock(site.repository / ".lock", seconds=0, busy=lambda: refused),
        pytest.raises(PublishError, match="another command is changing") as caught,
    ):
        site.publish("1.1.0", lock_seconds=0)
    assert caught.value.code == repository.LOCKED_EXIT
    assert site.has(site.client(), "1.0.0")
    assert site.publish("1.1.0", lock_seconds=0).new, "the lock was let go"


def test_a_disk_that_is_too_small_is_told_and_nothing_is_changed(site: Site) -> None:
    site.publish("1.0.0")
    before = _files(site.repository)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    release = make_release(site.path / "release", "1.1.0")
    # Not a full disk, but the same to whoever writes: the system refuses the next bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(PublishError, match="cannot write") as caught:
            repository.publish(release, site.repository, site.keys, NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == repository.WRITE_EXIT
    assert _metadata(_files(site.repository)) == _metadata(before)
    assert not list(site.repository.rglob(".new-*"))
    assert site.publish("1.1.0").new


# --- Rotation, expiry, strangers ----------------------------------------------------------------


@pytest.mark.parametrize("role", keys.ROLES)
def test_a_machine_follows_the_rotation_of_any_key(site: Site, role: str) -> None:
    site.publish("1.0.0")
    client = site.client()
    assert site.has(client, "1.0.0")
    keys.rotate(site.keys, role, NOW)
    site.publish("1.1.0")
    assert site.has(client, "1.1.0")
    keys.rotate(site.keys, role, NOW)
    repository.resign(site.repository, site.keys, NOW)
    assert site.has(client, "1.1.0")
    assert site.has(site.client("machine that was off all the time"), "1.1.0")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_after_a_rotation_the_old_key_is_worth_nothing(
    site: Site, role: str, tmp_path: Path
) -> None:
    site.publish("1.0.0")
    stolen = tmp_path / "stolen"
    _copy_tree(site.keys, stolen)
    keys.rotate(site.keys, role, NOW)
    repository.resign(site.repository, site.keys, NOW)
    assert site.has(site.client("before"), "1.0.0")
    # The thief has every old key but root's, and the mirror: he signs on with the old root.
    newest = site.repository / "metadata" / "2.root.json"
    kept = newest.read_bytes()
    newest.unlink()
    forged = make_release(tmp_path / "forged", "6.6.6")
    old = repository.publish(forged, tmp_path / "mirror", stolen, NOW)
    assert old.new
    _copy_tree(tmp_path / "mirror", site.repository)
    newest.write_bytes(kept)
    with pytest.raises(UnsignedMetadataError):
        site.client("after").fetch("6.6.6/manifest.json")


def test_a_rotated_root_key_cannot_sign_the_next_root(site: Site, tmp_path: Path) -> None:
    stolen = tmp_path / "stolen"
    _copy_tree(site.keys, stolen)
    keys.rotate(site.keys, "root", NOW)
    keys.rotate(stolen, "root", NOW)
    keys.rotate(stolen, "root", NOW)
    third = (stolen / "roots" / "3.root.json").read_bytes()
    (site.keys / "roots" / "3.root.json").write_bytes(third)
    with pytest.raises(KeysError, match="cannot be used as a root"):
        keys.roots(site.keys)


@pytest.mark.parametrize(
    ("lifetimes", "role"),
    [
        (Lifetimes(targets=timedelta(hours=-1)), "targets"),
        (Lifetimes(snapshot=timedelta(hours=-1)), "snapshot"),
        (Lifetimes(timestamp=timedelta(hours=-1)), "timestamp"),
    ],
)
def test_expired_metadata_is_refused_by_machines_until_signed_anew(
    site: Site, lifetimes: Lifetimes, role: str
) -> None:
    site.publish("1.0.0", lifetimes=lifetimes)
    client = site.client()
    with pytest.raises(ExpiredMetadataError, match=role):
        client.fetch("1.0.0/manifest.json")
    if role == "targets":
        repository.resign(site.repository, site.keys, NOW)
    else:
        repository.refresh(site.repository, site.keys / "online", NOW)
    assert site.has(client, "1.0.0")


def test_nothing_is_signed_under_an_expired_root(site: Site) -> None:
    later = NOW + timedelta(days=366)
    release = make_release(site.path / "release", "1.0.0")
    with pytest.raises(KeysError, match="expired on") as caught:
        repository.publish(release, site.repository, site.keys, later)
    assert "proa keys renew" in str(caught.value.hint)
    keys.renew(site.keys, later)
    assert repository.publish(release, site.repository, site.keys, later).new


def test_expiry_dates_are_those_that_were_asked_for(site: Site) -> None:
    lifetimes = Lifetimes(timedelta(days=10), timedelta(days=5), timedelta(hours=2))
    site.publish("1.0.0", lifetimes=lifetimes)
    signed = repository.signatures(site.repository)
    now = NOW.replace(microsecond=0)
    assert signed.root == now + timedelta(days=365)
    assert signed.targets == now + timedelta(days=10)
    assert signed.snapshot == now + timedelta(days=5)
    assert signed.timestamp == now + timedelta(hours=2)


def test_refresh_needs_only_the_online_keys(site: Site, tmp_path: Path) -> None:
    site.publish("1.0.0")
    online = tmp_path / "server-keys"
    _copy_tree(site.keys / "online", online)
    (site.keys).rename(tmp_path / "in the safe")
    later = NOW + timedelta(hours=13)
    signed = repository.refresh(site.repository, online, later)
    assert signed.timestamp == later.replace(microsecond=0) + timedelta(days=1)
    assert site.has(site.client(), "1.0.0")


def test_refresh_without_force_signs_only_what_is_half_gone(site: Site) -> None:
    site.publish("1.0.0")
    online = site.keys / "online"

    def versions(hours: int) -> tuple[int, int]:
        now = NOW + timedelta(hours=hours)
        repository.refresh(site.repository, online, now, force=False)
        timestamp = json.loads((site.repository / "metadata" / "timestamp.json").read_bytes())
        meta = timestamp["signed"]["meta"]["snapshot.json"]
        return timestamp["signed"]["version"], meta["version"]

    assert versions(1) == (1, 1)
    assert versions(13) == (2, 1)
    assert versions(24 * 4) == (3, 2)
    assert site.has(site.client(), "1.0.0")


def test_refresh_with_a_strangers_keys_is_refused(site: Site, tmp_path: Path) -> None:
    site.publish("1.0.0")
    keys.init(tmp_path / "stranger", NOW)
    before = _files(site.repository)
    with pytest.raises(KeysError, match="snapshot key that the root names is not here"):
        repository.refresh(site.repository, tmp_path / "stranger" / "online", NOW)
    assert _files(site.repository) == before


def test_a_repository_of_other_keys_is_not_extended(site: Site, tmp_path: Path) -> None:
    site.publish("1.0.0")
    keys.init(tmp_path / "stranger", NOW)
    release = make_release(tmp_path / "release", "1.1.0")
    with pytest.raises(PublishError, match="belongs to other keys") as caught:
        repository.publish(release, site.repository, tmp_path / "stranger", NOW)
    assert caught.value.code == repository.REPOSITORY_EXIT


def test_metadata_that_was_tampered_with_is_not_signed_again(site: Site) -> None:
    site.publish("1.0.0")
    path = site.repository / "metadata" / "1.targets.json"
    document = json.loads(path.read_bytes())
    evil = document["signed"]["targets"].pop("1.0.0/proa.efi")
    document["signed"]["targets"]["1.0.0/evil.efi"] = evil
    path.write_text(json.dumps(document))
    with pytest.raises(PublishError, match="not signed by the keys") as caught:
        site.publish("1.1.0")
    assert caught.value.code == repository.REPOSITORY_EXIT


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_damaged_metadata_is_named(site: Site, name: str) -> None:
    site.publish("1.0.0")
    (site.repository / "metadata" / name).write_bytes(b"\x00garbage")
    with pytest.raises(PublishError, match=name) as caught:
        site.publish("1.1.0")
    assert caught.value.code == repository.REPOSITORY_EXIT


# --- Withdrawing and listing --------------------------------------------------------------------


def test_a_withdrawn_version_is_no_longer_accepted(site: Site) -> None:
    site.publish("1.0.0")
    site.publish("1.1.0")
    client = site.client()
    assert site.has(client, "1.1.0")
    repository.withdraw("1.1.0", site.repository, site.keys, NOW)
    assert client.fetch("1.1.0/manifest.json") is None
    assert site.has(client, "1.0.0")
    listed = [(v.version, v.withdrawn) for v in repository.list_versions(site.repository)]
    assert listed == [("1.0.0", False), ("1.1.0", True)]


def test_a_withdrawn_version_can_only_come_back_as_it_was(site: Site) -> None:
    site.publish("1.0.0")
    site.publish("1.1.0")
    repository.withdraw("1.1.0", site.repository, site.keys, NOW)
    other = make_release(site.path / "other", "1.1.0", content=b"other")
    with pytest.raises(PublishError, match="other content"):
        repository.publish(other, site.repository, site.keys, NOW)
    assert site.publish("1.1.0").new
    assert site.has(site.client(), "1.1.0")
    assert not any(v.withdrawn for v in repository.list_versions(site.repository))


def test_withdrawing_an_unknown_version_says_what_there_is(site: Site) -> None:
    site.publish("1.0.0")
    with pytest.raises(PublishError, match=r"no version 9\.9\.9") as caught:
        repository.withdraw("9.9.9", site.repository, site.keys, NOW)
    assert caught.value.code == repository.UNKNOWN_EXIT
    assert "1.0.0" in str(caught.value.hint)


def test_versions_are_listed_by_version_with_their_sizes(site: Site) -> None:
    for name in ("1.10.0", "1.9.0", "1.10.0-rc.1"):
        site.publish(name)
    listed = repository.list_versions(site.repository)
    assert [v.version for v in listed] == ["1.9.0", "1.10.0-rc.1", "1.10.0"]
    assert listed[0].size > 3 * 4096


@pytest.mark.parametrize("command", ["refresh", "resign", "withdraw", "list_versions"])
def test_a_missing_repository_is_said_to_be_missing_and_not_made(site: Site, command: str) -> None:
    nowhere = site.path / "nowhere"
    with pytest.raises(PublishError, match="no repository in") as caught:
        if command == "refresh":
            repository.refresh(nowhere, site.keys / "online", NOW)
        elif command == "resign":
            repository.resign(nowhere, site.keys, NOW)
        elif command == "withdraw":
            repository.withdraw("1.0.0", nowhere, site.keys, NOW)
        else:
            repository.list_versions(nowhere)
    assert caught.value.code == repository.REPOSITORY_EXIT
    assert not nowhere.exists()


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def _metadata(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith("metadata/")}


def _copy_tree(source: Path, destination: Path) -> None:
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(path.stat().st_mode & 0o777)
