"""What the repository's signatures vouch for.

The work is done by the ``tuf`` library's client: root → timestamp → snapshot → targets, each
checked against the one before. The chain begins at the root that is in the image under dm-verity
(``/usr/share/proa/root.json``); nothing is ever accepted without it.

Importing this module is slow on a small machine (``tuf`` brings ``requests`` and
``cryptography``): it is imported only when there is something to install.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from proa.machine import fetch
from proa.machine.errors import Code, MachineError
from proa.machine.payload import Signed
from proa.machine.system import System

_ANCHOR = "/usr/share/proa/root.json"
# No answer to be had is worth more: the largest is the targets metadata, some 100 kB.
_MAX_METADATA = 8 << 20


@dataclass(frozen=True)
class SignedFile:
    """A file that the repository's targets role vouches for."""

    path: str
    base: str
    size: int
    sha256: str

    @property
    def url(self) -> str:
        return self.at(self.base)

    def at(self, base: str) -> str:
        """Return the address of the file at a mirror."""
        return f"{_folder(base)}{self.path}"


class Repository:
    """A TUF repository, looked at once: it is one consistent state of it."""

    def __init__(self, system: System, base_url: str, patience: fetch.Patience) -> None:
        self._base = _folder(base_url)
        self._patience = patience
        metadata = system.state_dir / "tuf"
        _seed(system, metadata)
        try:
            self._updater = Updater(
                metadata_dir=str(metadata),
                metadata_base_url=f"{self._base}metadata/",
                fetcher=_Fetcher(patience),
                config=UpdaterConfig(prefix_targets_with_hash=True),
            )
            self._updater.refresh()
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            self._fail(error)

    def find(self, path: str) -> SignedFile:
        """Return the target of that path, or raise where the repository does not vouch for it."""
        try:
            info = self._updater.get_targetinfo(path)
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            self._fail(error)
        if info is None:
            raise MachineError(
                Code.METADATA_UNTRUSTED,
                f"{self._base}: the signed metadata has no {path}",
                "publish the release in this repository (`proa publish`) before a channel names it",
            )
        try:
            return SignedFile(self._path(info), self._base, info.length, info.hashes["sha256"])
        except KeyError:
            raise MachineError(
                Code.METADATA_UNTRUSTED, f"{self._base}: {path} is signed without its sha256"
            ) from None

    def payload(self, version: str, name: str, bases: Sequence[str]) -> Signed | None:
        """Return a payload of a version, or None where there is none that can be understood."""
        try:
            info = self._updater.get_targetinfo(f"{version}/{name}")
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            self._fail(error)
        if info is None:
            return None
        try:
            about = info.custom["proa"]
            head = about["head"]
            return Signed(
                urls=tuple(f"{_folder(base)}{self._path(info)}" for base in bases),
                size=info.length,
                head_length=_number(head["length"]),
                head_sha256=str(head["sha256"]),
                encoder=str(about["encoder"]),
                source=str(about["source"]),
                origin=str(about["from"]),
                scratch=_number(about["scratch"]),
            )
        except (KeyError, TypeError, ValueError):
            return None  # of a later format: there are other ways

    def read(self, file: SignedFile, limit: int) -> bytes:
        """Fetch a small file whole and check it, or raise."""
        if file.size > limit:
            raise MachineError(
                Code.BAD_ANSWER, f"{file.url} has {file.size} bytes; at most {limit} are read"
            )
        try:
            data = b"".join(fetch.download(file.url, 0, file.size, self._patience))
        except fetch.WrongSize as error:
            raise MachineError(Code.PAYLOAD_MISMATCH, str(error)) from None
        except fetch.FetchError as error:
            raise MachineError(
                Code.DOWNLOAD_FAILED, str(error), "it is tried again at the next check"
            ) from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise MachineError(
                Code.PAYLOAD_MISMATCH,
                f"{file.url} is not the file that was signed (its sha256 differs)",
                "publish the release again from its original files",
            )
        return data

    def _path(self, info: TargetFile) -> str:
        directory, slash, name = info.path.rpartition("/")
        return f"targets/{directory}{slash}{info.hashes['sha256']}.{name}"

    def _fail(self, error: Exception) -> NoReturn:
        where = f"{self._base}metadata/"
        if isinstance(error, exceptions.ExpiredMetadataError):
            raise MachineError(
                Code.METADATA_EXPIRED,
                f"{where}: {error}; metadata that is too old is not trusted",
                "sign it anew (`proa repo refresh`, or `proa serve --online-keys`), and check "
                "this machine's clock",
            ) from None
        if isinstance(error, exceptions.DownloadHTTPError) and error.status_code in (403, 404, 410):
            raise MachineError(
                Code.METADATA_UNTRUSTED,
                f"{where}: metadata is missing: {error}",
                "nothing is installed without it; check that the server serves the repository",
            ) from None
        if isinstance(error, exceptions.DownloadError):
            raise MachineError(
                Code.DOWNLOAD_FAILED, f"{where}: {error}", "it is tried again at the next check"
            ) from None
        raise MachineError(
            Code.METADATA_UNTRUSTED,
            f"{where}: not signed by the keys that this machine trusts: {error}",
            "check that the server's repository was made with the keys of this machine's image",
        ) from None


def _folder(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


class _Fetcher(FetcherInterface):
    """Brings metadata with our own patience instead of the library's."""

    def __init__(self, patience: fetch.Patience) -> None:
        self._patience = patience

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from fetch.get(url, _MAX_METADATA, self._patience)
        except fetch.FetchError as error:
            if error.status is not None:
                raise exceptions.DownloadHTTPError(str(error), error.status) from None
            raise exceptions.DownloadError(str(error)) from None


def _seed(system: System, metadata: Path) -> None:
    """Start the chain of roots from the image's, where the kept one does not continue it.

    The kept root is newer than the image's after a rotation of keys, and then it counts. Where
    the image brings a newer one, or another one of the same number (an image made with other
    keys), the image counts: it is what dm-verity vouches for.
    """
    try:
        anchor = system.path(_ANCHOR).read_bytes()
        anchor_version = _version(anchor)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MachineError(
            Code.METADATA_UNTRUSTED,
            f"{_ANCHOR}: the image's root of trust cannot be read: {error}",
            "nothing is ever installed without it; make the image again",
        ) from None
    kept, origin = metadata / "root.json", metadata / "anchor.sha256"
    digest = hashlib.sha256(anchor).hexdigest()
    try:
        kept_version = _version(kept.read_bytes())
        same_anchor = origin.read_text().strip() == digest
        if kept_version > anchor_version or (kept_version == anchor_version and same_anchor):
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Nothing kept, or nothing readable.
    metadata.mkdir(parents=True, exist_ok=True)
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        system.files.remove(metadata / name)
    system.files.replace(kept, anchor)
    system.files.replace(origin, f"{digest}\n".encode())


def _version(root: bytes) -> int:
    return int(json.loads(root)["signed"]["version"])
