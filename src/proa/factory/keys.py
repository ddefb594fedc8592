"""The keys that a release's authenticity rests on, and the TUF root that names them.

A key directory holds one ed25519 key for each of TUF's four roles, as PKCS8 PEM files that only
their owner may read::

    root.pem targets.pem                      offline: needed to rotate keys, and to publish
    online/snapshot.pem online/timestamp.pem  online: the server signs freshness with them
    roots/1.root.json roots/2.root.json ...   every root there was, each signed by the one before
    root.json                                 a copy of the newest: the trust anchor of new images
    retired/ online/retired/                  keys that were rotated out

A signature is made by *key id*, not by file name: whichever file holds the key that a root names
is used. So a rotation that was cut short is finished by the next command, and while a repository
still carries the older root, its retired keys can sign along (see :mod:`proa.factory.repository`).

Source of the format: The Update Framework specification 1.0, through the ``tuf`` library.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from proa.factory import atomic
from proa.wire.errors import UserError

OFFLINE = ("root", "targets")
ONLINE = ("snapshot", "timestamp")
ROLES = OFFLINE + ONLINE
ROOT_LIFETIME = timedelta(days=365)

# Exit status of commands that stop because of keys; documented in docs/signing.md.
KEYS_EXIT = 3

_Signed = TypeVar("_Signed", Root, Snapshot, Targets, Timestamp)


class KeysError(UserError):
    """Keys are missing, unreadable, or not the ones that are needed."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code=KEYS_EXIT)


@dataclass(frozen=True)
class KeyInfo:
    """A role's key: its id (public), and the file that holds the secret, if one does."""

    role: str
    key_id: str
    file: Path | None


def init(
    directory: Path,
    now: datetime,
    *,
    passphrase: bytes | None = None,
    lifetime: timedelta = ROOT_LIFETIME,
) -> Path:
    """Make four keys and the first root in ``directory``; return the path of ``root.json``.

    The offline keys are encrypted if a ``passphrase`` is given. All of it appears at once, or not
    at all; a directory that holds anything is refused.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise KeysError(
            f"{directory} is not empty, and keys are never overwritten",
            hint="Use `proa keys rotate` to replace a key, or --dir for another place.",
        )
    with _explained(directory):
        _make(directory, now, passphrase, lifetime)
    return directory / "root.json"


def _make(directory: Path, now: datetime, passphrase: bytes | None, lifetime: timedelta) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        for folder in ("online/retired", "roots", "retired"):
            (draft / folder).mkdir(parents=True)
        for folder in ("online", "online/retired", "retired"):
            (draft / folder).chmod(0o700)
        root = Root(consistent_snapshot=True)
        for role in ROLES:
            signer = _generate(_key_file(draft, role), passphrase if role in OFFLINE else None)
            root.add_key(signer.public_key, role)
        metadata = Metadata(root)
        root.expires = expiry(now, lifetime)
        sign(metadata, signers([draft], "root", [root], passphrase=passphrase))
        _write_root(draft, metadata)
        draft.replace(directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def rotate(
    directory: Path,
    role: str,
    now: datetime,
    *,
    passphrase: bytes | None = None,
    lifetime: timedelta = ROOT_LIFETIME,
) -> int:
    """Replace the key of ``role`` and sign a new root; return the new root's version.

    The change reaches machines with the next publish or :func:`proa.factory.repository.resign`.
    """
    if role not in ROLES:
        raise KeysError(f"there is no role {role!r}", hint=f"Roles are {', '.join(ROLES)}.")
    with _locked(directory):
        current = _settle(directory, passphrase)
        root = copy.deepcopy(current.signed)
        old = list(root.roles[role].keyids)
        waiting = _waiting_file(directory, role)
        signer = _generate(waiting, passphrase if role in OFFLINE else None)
        root.add_key(signer.public_key, role)
        for key_id in old:
            root.revoke_key(key_id, role)
        version = _next_root(directory, current.signed, root, now, lifetime, passphrase)
        _settle(directory, passphrase)
        return version


def renew(
    directory: Path,
    now: datetime,
    *,
    passphrase: bytes | None = None,
    lifetime: timedelta = ROOT_LIFETIME,
) -> int:
    """Sign a new root with the same keys, which lives ``lifetime`` from now; return its version."""
    with _locked(directory):
        current = _settle(directory, passphrase)
        root = copy.deepcopy(current.signed)
        version = _next_root(directory, current.signed, root, now, lifetime, passphrase)
        _settle(directory, passphrase)
        return version


def roots(directory: Path) -> list[Metadata[Root]]:
    """Return every root of ``directory``, oldest first, each checked against the one before."""
    if not (directory / "roots").is_dir():
        raise KeysError(
            f"there are no keys in {directory}",
            hint="Make them with `proa keys init`, or say where they are with --keys.",
        )
    found: list[Metadata[Root]] = []
    while (path := _root_file(directory, len(found) + 1)).exists():
        found.append(load_root(path, found[-1].signed if found else None))
    if not found:
        raise KeysError(f"{_root_file(directory, 1)} is missing: the keys cannot be used")
    return found


def load_root(path: Path, before: Root | None) -> Metadata[Root]:
    """Read a root; it must be signed by itself and follow the root ``before`` it, if given."""
    try:
        metadata = Metadata[Root].from_file(str(path))
        if not isinstance(metadata.signed, Root):
            raise KeysError(f"{path} is not a TUF root")
        for signer in (metadata.signed, before):
            if signer is not None:
                signer.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (TufError, OSError) as error:
        raise KeysError(f"{path} cannot be used as a root: {error}") from None
    if metadata.signed.version != (before.version + 1 if before else 1):
        raise KeysError(f"{path} cannot be used as a root: it says it is {metadata.signed.version}")
    return metadata


def describe(directory: Path) -> list[KeyInfo]:
    """Return the key of each role, and whether its secret is in ``directory``."""
    root = roots(directory)[-1].signed
    return [
        KeyInfo(role, key_id, file if file.exists() else None)
        for role in ROLES
        for key_id in root.roles[role].keyids
        for file in [_key_file(directory, role)]
    ]


def signers(
    directories: Iterable[Path],
    role: str,
    wanted: Iterable[Root],
    *,
    passphrase: bytes | None = None,
) -> list[CryptoSigner]:
    """Return the keys of ``role`` that any root in ``wanted`` names and that can be found.

    The last of ``wanted`` is the one that counts: its key must be there. ``directories`` are key
    directories or, for online roles, directories with the online keys alone.
    """
    named = [set(root.roles[role].keyids) for root in wanted]
    files = [file for directory in directories for file in _candidates(directory, role)]
    found: dict[str, CryptoSigner] = {}
    for file in files:
        signer = CryptoSigner(_load(file, passphrase))
        if any(signer.public_key.keyid in key_ids for key_ids in named):
            found.setdefault(signer.public_key.keyid, signer)
    if not named[-1] & found.keys():
        where = ", ".join(str(file) for file in files) or "no key file there"
        raise KeysError(
            f"the {role} key that the root names is not here (looked at: {where})",
            hint="Use the keys that this repository was made with (--keys, --online-keys).",
        )
    return list(found.values())


def sign(metadata: Metadata[_Signed], keys: Iterable[CryptoSigner]) -> None:
    """Replace the signatures of ``metadata`` by those of ``keys``."""
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(key, append=True)


def dump(metadata: Metadata[_Signed]) -> bytes:
    """Return the file content of signed metadata."""
    return metadata.to_bytes(JSONSerializer(compact=False)) + b"\n"


def expiry(now: datetime, lifetime: timedelta) -> datetime:
    """Return when something signed ``now`` expires, as TUF writes it: UTC, whole seconds."""
    return (now.astimezone(UTC) + lifetime).replace(microsecond=0)


# --- Root versions ------------------------------------------------------------------------------


def _next_root(
    directory: Path,
    before: Root,
    root: Root,
    now: datetime,
    lifetime: timedelta,
    passphrase: bytes | None,
) -> int:
    """Sign ``root`` as the successor of ``before``, with the root keys of both, and write it."""
    root.version = before.version + 1
    root.expires = expiry(now, lifetime)
    metadata = Metadata(root)
    old = signers([directory], "root", [before], passphrase=passphrase)
    new = signers([directory], "root", [root], passphrase=passphrase)
    both = {signer.public_key.keyid: signer for signer in (*old, *new)}
    sign(metadata, both.values())
    atomic.write(_root_file(directory, root.version), dump(metadata))
    return root.version


def _settle(directory: Path, passphrase: bytes | None) -> Metadata[Root]:
    """Finish a rotation that was cut short, and return the newest root.

    A waiting key counts once a root names it; one that no root names is left from a rotation that
    never happened, and the next one overwrites it.
    """
    newest = roots(directory)[-1]
    for role in ROLES:
        waiting, current = _waiting_file(directory, role), _key_file(directory, role)
        if not waiting.exists():
            continue
        key_id = CryptoSigner(_load(waiting, passphrase)).public_key.keyid
        if key_id in newest.signed.roles[role].keyids:
            if current.exists():
                name = f"{role}-before-root-{newest.signed.version}.pem"
                atomic.rename(current, current.parent / "retired" / name)
            atomic.rename(waiting, current)
    _write_root(directory, newest)
    return newest


def _write_root(directory: Path, metadata: Metadata[Root]) -> None:
    data = dump(metadata)
    for path in (_root_file(directory, metadata.signed.version), directory / "root.json"):
        if not path.exists() or path.read_bytes() != data:
            atomic.write(path, data)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    roots(directory)
    busy = KeysError(f"another command is changing the keys in {directory}", hint="Try again.")
    with (
        _explained(directory),
        atomic.lock(directory / ".lock", seconds=5, busy=lambda: busy),
    ):
        yield


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Tell a full disk or a missing permission as what it is."""
    try:
        yield
    except OSError as error:
        raise KeysError(
            f"cannot change the keys in {directory}: {error.strerror or error}",
            hint="Mend that and do it again; the keys are as they were, or complete.",
        ) from None


# --- Key files ----------------------------------------------------------------------------------


def _root_file(directory: Path, version: int) -> Path:
    return directory / "roots" / f"{version}.root.json"


def _key_file(directory: Path, role: str) -> Path:
    return directory / "online" / f"{role}.pem" if role in ONLINE else directory / f"{role}.pem"


def _waiting_file(directory: Path, role: str) -> Path:
    return _key_file(directory, role).with_suffix(".pem.next")


def _candidates(directory: Path, role: str) -> list[Path]:
    """Return the files that may hold a key of ``role``, the likeliest first."""
    # The second is for a server, which is given the online keys and nothing else.
    for file in (_key_file(directory, role), directory / f"{role}.pem"):
        if file.parent.is_dir() and (found := [file, file.with_suffix(".pem.next")]):
            found += sorted((file.parent / "retired").glob(f"{role}-*.pem"), reverse=True)
            if existing := [candidate for candidate in found if candidate.exists()]:
                return existing
    return []


def _generate(path: Path, passphrase: bytes | None) -> CryptoSigner:
    key = Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    atomic.write(path, pem, mode=0o600)
    return CryptoSigner(key)


def _load(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a private key. What is in the file never gets into a message."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        pem = path.read_bytes()
    except OSError as error:
        raise KeysError(f"cannot read the key {path}: {error.strerror}") from None
    if mode & 0o077:
        raise KeysError(
            f"the key {path} can be read by others (mode {mode:04o})",
            hint=f"If they may not have read it: chmod 600 {path}; else rotate it.",
        )
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise KeysError(f"the key {path} has a passphrase", hint="Give it by --passphrase-file.")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "the passphrase is wrong, or the file is damaged" if encrypted else "it is damaged"
        raise KeysError(f"cannot use the key {path}: {what}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeysError(f"the key {path} is not an ed25519 key")
    return key
