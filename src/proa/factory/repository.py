"""The TUF repository: static files that any web server can serve and no one can forge.

::

    metadata/N.root.json N.targets.json N.snapshot.json timestamp.json
    targets/<version>/<sha256>.<file>

A release is the targets ``<version>/manifest.json`` and ``<version>/<file>`` for each file that a
machine installs. Published bytes never change: the targets metadata also remembers withdrawn
releases (``x-proa-withdrawn``), so that their versions cannot come back as something else.

Its payloads are further targets, ``<version>/full.payload`` and ``<version>/from-<16 digits of the
verity root hash that it starts from>.payload``. What a machine chooses by is in their ``custom``
object, see :func:`_payload_target`. They may come later than the release, and one that
was made anew may take another's place: what comes out of it is the same.

Every change is written in the order in which a machine would miss it: target files, then
``N.targets.json``, ``N.snapshot.json`` and last ``timestamp.json``, which alone makes the others
current. A stop in between leaves the old repository, whole. When a key was rotated, the old and the
new key both sign, and the new root comes after: machines that know either root can read it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from proa.factory import atomic, keys, payload_file
from proa.factory.payload_file import PayloadFile
from proa.wire import manifest, version
from proa.wire.errors import UserError
from proa.wire.manifest import MANIFEST, PAYLOAD_FILES, Manifest, ManifestError

WITHDRAWN = "x-proa-withdrawn"

# Exit status of commands that publish; documented in docs/signing.md. 3 is KEYS_EXIT.
RELEASE_EXIT = payload_file.RELEASE_EXIT
TAKEN_EXIT = 5
LOCKED_EXIT = 6
UNKNOWN_EXIT = 7
REPOSITORY_EXIT = 8
PAYLOAD_EXIT = payload_file.PAYLOAD_EXIT
WRITE_EXIT = payload_file.WRITE_EXIT

_PAYLOAD = ".payload"

_Role = TypeVar("_Role", Root, Snapshot, Targets, Timestamp)
Report = Callable[[str], None]


class PublishError(UserError):
    """A release or a repository is not as it must be; ``code`` says which (see above)."""


@dataclass(frozen=True)
class Lifetimes:
    """How long each signature is good for. Short ones bound how long a mirror can hide news."""

    targets: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)


DEFAULT_LIFETIMES = Lifetimes()


@dataclass(frozen=True)
class Published:
    """What :func:`publish` did. ``new`` is false if the same bytes were there already.

    ``files`` and ``payloads`` are names with their sizes in bytes, of payloads only those that were
    not there already. ``channels`` are those that the release is meant for; none named means any.
    """

    version: str
    files: Mapping[str, int]
    new: bool
    channels: tuple[str, ...] = ()
    payloads: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Payload:
    """A payload in the repository: ``size`` in bytes; ``source`` the root hash that it starts from
    and ``origin`` the version of that; both are "" for the full one."""

    name: str
    size: int
    source: str
    origin: str
    encoder: str


@dataclass(frozen=True)
class Listed:
    """A version in the repository; ``size`` is that of the release's files in bytes, payloads not
    counted (0 if withdrawn)."""

    version: str
    size: int
    withdrawn: bool
    payloads: tuple[Payload, ...] = ()


@dataclass(frozen=True)
class Signatures:
    """When what is in the repository expires."""

    root: datetime
    targets: datetime
    snapshot: datetime
    timestamp: datetime


@dataclass(frozen=True)
class _State:
    """The current metadata of a repository; None before the first publish."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp


# --- What the commands do -----------------------------------------------------------------------


def publish(
    release: Path,
    repository: Path,
    keys_dir: Path,
    now: datetime,
    *,
    lifetimes: Lifetimes = DEFAULT_LIFETIMES,
    passphrase: bytes | None = None,
    payloads: Sequence[Path] = (),
    dry_run: bool = False,
    lock_seconds: float = 30,
    report: Report = lambda _: None,
) -> Published:
    """Verify the release directory, copy it into the repository and sign.

    ``payloads`` are files that lead to this release; machines see them from the same moment on.
    Raises :class:`PublishError` if a file is not what the manifest says, if the version is there
    with other bytes, if a payload leads elsewhere, or if another publish holds the lock for
    ``lock_seconds``. With ``dry_run`` everything is checked, keys included, and nothing is written.
    """
    report("verifying the release")
    contents, found = verify_release(release)
    name = str(contents.version)
    targets = {target.path: target for target in found.values()}
    files = {file: target.length for file, target in found.items()}
    offered = _opened(payloads, name, targets, report)
    # A dry run only reads, and must not make a repository either.
    with contextlib.nullcontext() if dry_run else _locked(repository, lock_seconds):
        roots = keys.roots(keys_dir)
        state = _load(repository, roots)
        old = state.targets if state else None
        if _digest_of(old, name) not in (None, _manifest_digest(targets[f"{name}/{MANIFEST}"])):
            raise PublishError(
                f"{repository} already has a version {name} with other content",
                hint="A published version never changes. Build this one under a new version.",
                code=TAKEN_EXIT,
            )
        known = bool(old and f"{name}/{MANIFEST}" in old.targets)
        adding = [] if known else [_Adding(t, release / file) for file, t in found.items()]
        new_payloads = _new_payloads(offered, name, old, repository)
        sizes = {a.name: a.target.length for a in new_payloads}
        done = Published(name, files, not known, contents.channels, sizes)
        adding += new_payloads
        if not adding:
            return done
        signing = _Signing(keys_dir, roots, state, now, lifetimes, passphrase)
        metadata = signing.files(add_release(old, {a.target.path: a.target for a in adding}))
        if not dry_run:
            _commit(repository, adding, metadata, report)
    return done


def add_payloads(
    name: str,
    payloads: Sequence[Path],
    repository: Path,
    keys_dir: Path,
    now: datetime,
    *,
    lifetimes: Lifetimes = DEFAULT_LIFETIMES,
    passphrase: bytes | None = None,
    lock_seconds: float = 30,
    report: Report = lambda _: None,
) -> dict[str, int]:
    """Add payloads to the published version ``name``; return the sizes of those that are new.

    The same bytes again change nothing; other bytes from the same source take the old one's place.
    Raises :class:`PublishError` if one does not lead to that version.
    """
    with _changing(repository, keys_dir, lock_seconds) as (roots, state):
        if f"{name}/{MANIFEST}" not in state.targets.targets:
            raise unknown_version(name, [v.version for v in _list(state.targets)], repository)
        offered = _opened(payloads, name, state.targets.targets, report)
        adding = _new_payloads(offered, name, state.targets, repository)
        if adding:
            signing = _Signing(keys_dir, roots, state, now, lifetimes, passphrase)
            new = {a.target.path: a.target for a in adding}
            _commit(repository, adding, signing.files(add_release(state.targets, new)), report)
    return {a.name: a.target.length for a in adding}


def withdraw(
    name: str,
    repository: Path,
    keys_dir: Path,
    now: datetime,
    *,
    lifetimes: Lifetimes = DEFAULT_LIFETIMES,
    passphrase: bytes | None = None,
    lock_seconds: float = 30,
) -> None:
    """Take a version out of the signed metadata, so that no machine accepts it any more.

    Its files stay on disk for machines that are in the middle of a download.
    """
    with _changing(repository, keys_dir, lock_seconds) as (roots, state):
        if f"{name}/{MANIFEST}" not in state.targets.targets:
            raise unknown_version(name, [v.version for v in _list(state.targets)], repository)
        signing = _Signing(keys_dir, roots, state, now, lifetimes, passphrase)
        _write_metadata(repository, signing.files(remove_release(state.targets, name)))


def resign(
    repository: Path,
    keys_dir: Path,
    now: datetime,
    *,
    lifetimes: Lifetimes = DEFAULT_LIFETIMES,
    passphrase: bytes | None = None,
    lock_seconds: float = 30,
) -> Signatures:
    """Sign everything anew with all keys, and bring rotated or renewed roots to the repository."""
    with _changing(repository, keys_dir, lock_seconds) as (roots, state):
        signing = _Signing(keys_dir, roots, state, now, lifetimes, passphrase)
        _write_metadata(repository, signing.files(next_targets(state.targets)))
    return signatures(repository)


def refresh(
    repository: Path,
    online_keys: Path,
    now: datetime,
    *,
    lifetimes: Lifetimes = DEFAULT_LIFETIMES,
    force: bool = True,
    lock_seconds: float = 30,
) -> Signatures:
    """Sign timestamp and snapshot anew with the online keys alone; say when everything expires.

    Without ``force`` only what has lived half of its life is signed. This is what a server calls;
    it needs no offline key and changes nothing that they signed.
    """
    _need(repository)
    with _locked(repository, lock_seconds):
        state = _current(repository)
        signers = [
            keys.signers([online_keys], role, [state.root]) for role in ("snapshot", "timestamp")
        ]
        files: list[tuple[str, bytes]] = []
        link = state.timestamp.snapshot_meta
        if force or half_gone(state.snapshot.expires, lifetimes.snapshot, now):
            snapshot = next_snapshot(state.snapshot, state.snapshot.meta["targets.json"])
            snapshot.expires = keys.expiry(now, lifetimes.snapshot)
            link, file = _sign(snapshot, signers[0])
            files.append(file)
        if files or half_gone(state.timestamp.expires, lifetimes.timestamp, now):
            timestamp = next_timestamp(state.timestamp, link)
            timestamp.expires = keys.expiry(now, lifetimes.timestamp)
            files.append(_sign(timestamp, signers[1])[1])
        _write_metadata(repository, files)
    return signatures(repository)


def list_versions(repository: Path) -> list[Listed]:
    """Return the versions in the repository, oldest version first, withdrawn ones included."""
    return _list(_current(repository).targets)


def signatures(repository: Path) -> Signatures:
    """Return when the repository's metadata expires."""
    state = _current(repository)
    return Signatures(
        state.root.expires,
        state.targets.expires,
        state.snapshot.expires,
        state.timestamp.expires,
    )


def verify_release(release: Path) -> tuple[Manifest, dict[str, TargetFile]]:
    """Check a release directory against its manifest; return what is to be published of it."""
    path = release / MANIFEST
    try:
        data = path.read_bytes()
        contents = manifest.load(data)
    except OSError as error:
        raise PublishError(
            f"cannot read {path}: {error.strerror}",
            hint="Give the directory that `proa build --out` made.",
            code=RELEASE_EXIT,
        ) from None
    except ManifestError as error:
        raise PublishError(f"{path}: {error}", code=RELEASE_EXIT) from None
    targets = {MANIFEST: _target(contents.version, MANIFEST, atomic.digest(path))}
    for name in PAYLOAD_FILES:
        if (expected := contents.files.get(name)) is None:
            raise PublishError(f"{path} does not name {name}", code=RELEASE_EXIT)
        try:
            found = atomic.digest(release / name)
        except OSError as error:
            raise PublishError(
                f"cannot read {release / name}: {error.strerror}", code=RELEASE_EXIT
            ) from None
        if (found.size, found.sha256) != (expected.size, expected.sha256):
            raise PublishError(
                f"{release / name} is not the file that was built: it has {found.size} bytes and "
                f"sha256 {found.sha256[:12]}…, the manifest says {expected.size} bytes and "
                f"{expected.sha256[:12]}…",
                hint="Build the release again; nothing was published.",
                code=RELEASE_EXIT,
            )
        targets[name] = _target(contents.version, name, found)
    return contents, targets


def find_release(repository: Path, name: str, directory: Path) -> Path:
    """Lay out the published release ``name`` in ``directory`` as ``proa build`` did, by links.

    Only what a machine installs is there, and its manifest; each file is compared with its signed
    sha256. Raises :class:`PublishError` where one is missing or damaged.
    """
    targets = _current(repository).targets.targets
    directory.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, *PAYLOAD_FILES):
        target = targets.get(f"{name}/{file}")
        if target is None:
            raise unknown_version(name, [], repository)
        path = (repository / "targets" / name / f"{target.hashes['sha256']}.{file}").absolute()
        try:
            found = atomic.digest(path).sha256
        except OSError as error:
            raise _damaged(path, str(error.strerror)) from None
        if found != target.hashes["sha256"]:
            raise _damaged(path, "its content is not what was signed")
        (directory / file).symlink_to(path)
    return directory


def unknown_version(name: str, known: Sequence[str], repository: Path) -> PublishError:
    """Return the error for a version that is not in the repository."""
    have = f"It has {', '.join(known)}." if known else "It has none yet; see `proa publish`."
    return PublishError(f"{repository} has no version {name}", hint=have, code=UNKNOWN_EXIT)


# --- What comes next: pure ----------------------------------------------------------------------


def next_targets(old: Targets | None) -> Targets:
    """Return the targets after ``old``, still with the same releases; its expiry is the caller's.

    Like the other ``next_`` functions it leaves ``old`` as it is.
    """
    targets = copy.deepcopy(old) if old else Targets()
    targets.version = old.version + 1 if old else 1
    return targets


def add_release(old: Targets | None, new: Mapping[str, TargetFile]) -> Targets:
    """Return the targets after ``old`` that also have ``new`` (by target path)."""
    targets = next_targets(old)
    targets.targets.update(new)
    withdrawn = _withdrawn(targets)
    for path in new:
        withdrawn.pop(_version_of(path), None)
    return _with_withdrawn(targets, withdrawn)


def remove_release(old: Targets, name: str) -> Targets:
    """Return the targets after ``old`` without version ``name``, which is remembered."""
    targets = next_targets(old)
    digest = _manifest_digest(targets.targets[f"{name}/{MANIFEST}"])
    targets.targets = {
        path: target for path, target in targets.targets.items() if _version_of(path) != name
    }
    return _with_withdrawn(targets, {**_withdrawn(targets), name: digest})


def next_snapshot(old: Snapshot | None, targets: MetaFile) -> Snapshot:
    """Return the snapshot after ``old``, of these targets; its expiry is the caller's."""
    snapshot = copy.deepcopy(old) if old else Snapshot()
    snapshot.version = old.version + 1 if old else 1
    snapshot.meta = {"targets.json": targets}
    return snapshot


def next_timestamp(old: Timestamp | None, snapshot: MetaFile) -> Timestamp:
    """Return the timestamp after ``old``, of this snapshot; its expiry is the caller's."""
    timestamp = copy.deepcopy(old) if old else Timestamp()
    timestamp.version = old.version + 1 if old else 1
    timestamp.snapshot_meta = snapshot
    return timestamp


def half_gone(expires: datetime, lifetime: timedelta, now: datetime) -> bool:
    """Say whether something that lives ``lifetime`` has at most half of it left."""
    return expires - now <= lifetime / 2


def _withdrawn(targets: Targets) -> dict[str, str]:
    """Return the withdrawn versions with the sha256 of their manifests."""
    return dict(targets.unrecognized_fields.get(WITHDRAWN, {}))


def _with_withdrawn(targets: Targets, withdrawn: Mapping[str, str]) -> Targets:
    targets.unrecognized_fields.pop(WITHDRAWN, None)
    if withdrawn:
        targets.unrecognized_fields[WITHDRAWN] = dict(withdrawn)
    return targets


def _version_of(path: str) -> str:
    return path.partition("/")[0]


def _manifest_digest(target: TargetFile) -> str:
    return str(target.hashes["sha256"])


def _digest_of(targets: Targets | None, name: str) -> str | None:
    """Return the sha256 of the manifest that version ``name`` has or had, if it ever was there."""
    if targets is None:
        return None
    if found := targets.targets.get(f"{name}/{MANIFEST}"):
        return _manifest_digest(found)
    return _withdrawn(targets).get(name)


def _target(release: version.Version, name: str, digest: atomic.Digest) -> TargetFile:
    # sha1 is for Omaha, which has no other hash that every client reads. Machines verify sha256;
    # and it must not stand among the hashes, whose first one names the file.
    return TargetFile(
        digest.size,
        {"sha256": digest.sha256},
        f"{release}/{name}",
        {"custom": {"sha1": digest.sha1}},
    )


def _payload_target(
    path: str, opened: PayloadFile, digest: atomic.Digest, origin: str
) -> TargetFile:
    """Return the target of a payload.

    Its ``custom`` object is all that a machine chooses by: the length and hash of the head, which
    it checks before it reads it; the compressor that it must have; the root hash and the version
    that it starts from (each "" if there is none); and the bytes of disk that it takes meanwhile.
    """
    head = {"length": opened.head_length, "sha256": opened.head_sha256}
    about = {
        "head": head,
        "encoder": opened.head.encoder,
        "source": opened.source,
        "from": origin,
        "scratch": opened.head.scratch,
    }
    return TargetFile(digest.size, {"sha256": digest.sha256}, path, {"custom": {"proa": about}})


def _list(targets: Targets) -> list[Listed]:
    sizes: dict[str, int] = {}
    payloads: dict[str, list[Payload]] = {}
    for path, target in targets.targets.items():
        name, _, file = path.partition("/")
        if file.endswith(_PAYLOAD):
            payloads.setdefault(name, []).append(_payload(file, target))
        else:
            sizes[name] = sizes.get(name, 0) + target.length
    found = [
        Listed(name, size, withdrawn=False, payloads=_ordered(payloads.get(name, [])))
        for name, size in sizes.items()
    ]
    found += [Listed(name, 0, withdrawn=True) for name in _withdrawn(targets)]
    return sorted(found, key=lambda listed: version.parse(listed.version))


def _payload(name: str, target: TargetFile) -> Payload:
    about = target.unrecognized_fields["custom"]["proa"]
    return Payload(name, target.length, about["source"], about["from"], about["encoder"])


def _ordered(payloads: Sequence[Payload]) -> tuple[Payload, ...]:
    """Return the full payload first, then deltas from the newest version on."""

    def rank(payload: Payload) -> tuple[bool, version.Version]:
        return payload.source == "", version.parse(payload.origin or "0.0.0")

    return tuple(sorted(payloads, key=rank, reverse=True))


# --- Signing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signing:
    """All that is needed to sign the next state of a repository."""

    keys_dir: Path
    roots: Sequence[Metadata[Root]]
    state: _State | None
    now: datetime
    lifetimes: Lifetimes
    passphrase: bytes | None

    def files(self, targets: Targets) -> list[tuple[str, bytes]]:
        """Return the metadata files that make ``targets`` current, in the order of writing."""
        newest = self.roots[-1].signed
        if newest.expires <= self.now:
            raise keys.KeysError(
                f"the root in {self.keys_dir} expired on {newest.expires:%Y-%m-%d}",
                hint="Sign a new one with `proa keys renew`.",
            )
        state = self.state
        targets.expires = keys.expiry(self.now, self.lifetimes.targets)
        link, targets_file = _sign(targets, self._keys("targets"))
        snapshot = next_snapshot(state.snapshot if state else None, link)
        snapshot.expires = keys.expiry(self.now, self.lifetimes.snapshot)
        link, snapshot_file = _sign(snapshot, self._keys("snapshot"))
        timestamp = next_timestamp(state.timestamp if state else None, link)
        timestamp.expires = keys.expiry(self.now, self.lifetimes.timestamp)
        _, timestamp_file = _sign(timestamp, self._keys("timestamp"))
        current = [targets_file, snapshot_file, timestamp_file]
        if state is None:
            return [*(_file(root, keys.dump(root)) for root in self.roots), *current]
        new = self.roots[state.root.version :]
        return [*current, *(_file(root, keys.dump(root)) for root in new)]

    def _keys(self, role: str) -> list[CryptoSigner]:
        """Return the keys of ``role``: of the newest root, and of the one that machines know."""
        first = self.state.root.version - 1 if self.state else len(self.roots) - 1
        wanted = [root.signed for root in self.roots[first:]]
        return keys.signers([self.keys_dir], role, wanted, passphrase=self.passphrase)


def _sign(signed: _Role, signers: Sequence[CryptoSigner]) -> tuple[MetaFile, tuple[str, bytes]]:
    """Return how other metadata refers to ``signed``, and the file to write."""
    metadata = Metadata(signed)
    keys.sign(metadata, signers)
    data = keys.dump(metadata)
    return MetaFile.from_data(signed.version, data, ["sha256"]), _file(metadata, data)


def _file(metadata: Metadata[_Role], data: bytes) -> tuple[str, bytes]:
    role = metadata.signed.type
    plain = role == Timestamp.type
    return f"{role}.json" if plain else f"{metadata.signed.version}.{role}.json", data


# --- Reading and writing ------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(repository: Path, seconds: float) -> Iterator[None]:
    busy = PublishError(
        f"another command is changing {repository}",
        hint="Wait for it to end and try again; nothing was changed.",
        code=LOCKED_EXIT,
    )
    try:
        with atomic.lock(repository / ".lock", seconds=seconds, busy=lambda: busy):
            yield
    except OSError as error:
        raise PublishError(
            f"cannot write {repository}: {error.strerror or error}",
            hint="Mend that and do it again; the repository is as it was.",
            code=WRITE_EXIT,
        ) from None


@contextlib.contextmanager
def _changing(
    repository: Path, keys_dir: Path, seconds: float
) -> Iterator[tuple[Sequence[Metadata[Root]], _State]]:
    """Hold a repository that is there; yield the owner's roots, and its metadata by them."""
    _need(repository)
    with _locked(repository, seconds):
        roots = keys.roots(keys_dir)
        yield roots, _current(repository, roots)


def _load(repository: Path, trusted: Sequence[Metadata[Root]] | None) -> _State | None:
    """Read the current metadata, or None if nothing was published yet.

    Everything must be signed: what is extended and signed again here must not be a stranger's.
    With ``trusted`` the roots must be those, else each root must be signed by the one before.
    """
    folder = repository / "metadata"
    root: Root | None = None
    while (path := folder / f"{root.version + 1 if root else 1}.root.json").exists():
        root = keys.load_root(path, root).signed
        if trusted is not None and (
            len(trusted) < root.version or trusted[root.version - 1].signed != root
        ):
            raise PublishError(
                f"{repository} belongs to other keys: its root {root.version} is not theirs",
                hint="Give the keys that it was made with (--keys), or another --repo.",
                code=REPOSITORY_EXIT,
            )
    if not (folder / "timestamp.json").exists():
        return None
    if root is None:
        raise _damaged(folder / "1.root.json", "it is missing")
    # A stop after the timestamp and before a new root leaves signatures of the new root's keys.
    roots = [root] if trusted is None else [root, trusted[-1].signed]
    timestamp = _read(folder / "timestamp.json", Timestamp, roots)
    number = timestamp.snapshot_meta.version
    snapshot = _read(folder / f"{number}.snapshot.json", Snapshot, roots)
    number = snapshot.meta["targets.json"].version
    targets = _read(folder / f"{number}.targets.json", Targets, roots)
    return _State(root, targets, snapshot, timestamp)


def _read(path: Path, kind: type[_Role], roots: Sequence[Root]) -> _Role:
    try:
        metadata = Metadata[_Role].from_bytes(path.read_bytes())
    except (OSError, TufError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(metadata.signed, kind):
        raise _damaged(path, f"it is not {kind.type} metadata")
    for root in roots:
        with contextlib.suppress(TufError):
            root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
            return metadata.signed
    raise _damaged(path, "it is not signed by the keys that the root names")


def _damaged(path: Path, why: str) -> PublishError:
    return PublishError(
        f"{path} cannot be used: {why}",
        hint="Put the repository back from a copy; nothing was changed.",
        code=REPOSITORY_EXIT,
    )


def _current(repository: Path, trusted: Sequence[Metadata[Root]] | None = None) -> _State:
    if (state := _load(repository, trusted)) is None:
        raise _missing(repository)
    return state


def _need(repository: Path) -> None:
    """Stop a command for an existing repository before it makes a lock file somewhere else."""
    if not (repository / "metadata").is_dir():
        raise _missing(repository)


def _missing(repository: Path) -> PublishError:
    return PublishError(
        f"there is no repository in {repository}",
        hint="Make one with `proa publish RELEASE --repo DIR`.",
        code=REPOSITORY_EXIT,
    )


def _write_metadata(repository: Path, files: Sequence[tuple[str, bytes]]) -> None:
    folder = repository / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files:
        atomic.write(folder / name, data)


@dataclass(frozen=True)
class _Adding:
    """A file that becomes a target."""

    target: TargetFile
    source: Path

    @property
    def name(self) -> str:
        return self.target.path.partition("/")[2]


def _commit(
    repository: Path,
    adding: Sequence[_Adding],
    metadata: Sequence[tuple[str, bytes]],
    report: Report,
) -> None:
    """Copy files into the repository, and then say in the metadata that they are there."""
    atomic.sweep(repository)
    for file in adding:
        report(f"copying {file.name}")
        folder = repository / "targets" / _version_of(file.target.path)
        _place(file.source, folder, file.name, file.target)
    report("writing the metadata")
    _write_metadata(repository, metadata)


def _opened(
    payloads: Sequence[Path], name: str, targets: Mapping[str, TargetFile], report: Report
) -> list[tuple[PayloadFile, atomic.Digest]]:
    """Check payloads: each must be whole, and lead to the release of ``targets``."""
    found = []
    for path in payloads:
        report(f"verifying {path.name}")
        opened = payload_file.open_payload(path)
        for file, size, sha256 in payload_file.described(opened.head):
            target = targets[f"{name}/{file}"]
            if (size, sha256) != (target.length, target.hashes["sha256"]):
                raise PublishError(
                    f"{path} makes another {file} than that of {name}",
                    hint="Publish it with the release that it was made for.",
                    code=PAYLOAD_EXIT,
                )
        payload_file.check_blobs(opened)
        found.append((opened, atomic.digest(path)))
    return found


def _new_payloads(
    offered: Sequence[tuple[PayloadFile, atomic.Digest]],
    name: str,
    old: Targets | None,
    repository: Path,
) -> list[_Adding]:
    """Return those payloads that are not in the repository with the very same bytes."""
    known = old.targets if old else {}
    roots = _root_hashes(repository, known) if offered else {}
    adding = []
    for opened, digest in offered:
        path = f"{name}/{opened.name}"
        there = known.get(path)
        if there and there.hashes["sha256"] == digest.sha256:
            continue
        # That of a source which was withdrawn since is in the target that is replaced.
        before = _payload(opened.name, there).origin if there else ""
        origin = roots.get(opened.source, before)
        adding.append(_Adding(_payload_target(path, opened, digest, origin), opened.path))
    return adding


def _root_hashes(repository: Path, targets: Mapping[str, TargetFile]) -> dict[str, str]:
    """Return the version of each verity root hash that is published."""
    found = {}
    for path, target in targets.items():
        name, _, file = path.partition("/")
        if file == MANIFEST:
            place = repository / "targets" / name / f"{_manifest_digest(target)}.{file}"
            try:
                found[manifest.load(place.read_bytes()).root_hash] = name
            except (OSError, ManifestError) as error:
                raise _damaged(place, str(error)) from None
    return found


def _place(source: Path, folder: Path, name: str, target: TargetFile) -> None:
    """Copy a release's file to its place, unless it is there from a publish that was cut short."""
    expected = target.hashes["sha256"]
    path = folder / f"{expected}.{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and atomic.digest(path).sha256 == expected:
        return

    def accept(copied: atomic.Digest) -> None:
        if copied.sha256 != expected:
            raise PublishError(
                f"{source} changed while it was being published",
                hint="Publish again when nothing writes to it; nothing was published.",
                code=RELEASE_EXIT,
            )

    atomic.copy(source, path, accept=accept)
