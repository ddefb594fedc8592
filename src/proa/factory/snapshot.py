"""Snapshots: one state of Debian's archive, held as the very index files that apt reads.

A snapshot is a directory with a ``sources.list`` and apt's ``lists``, fetched and verified once by
the host's apt. Everything that a build installs is installed from these lists and not from the
mirror's newer ones, so two builds from one snapshot mean the same packages, whatever the mirror
has done in between; apt holds each package against the hash in them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from proa.factory import archive, cache
from proa.wire.errors import UserError

# How long a snapshot is taken as current before the archive is asked again, in seconds.
FRESH_FOR = 24 * 3600

_INDEX = f"main/binary-{archive.ARCHITECTURE}/Packages"

# apt does not fetch an empty index, which a suite of updates has when it is new.
_EMPTY = hashlib.sha256().hexdigest()

# What apt says of a package that is not on the mirror (any more) as the index has it.
_MOVED_ON = re.compile(
    r"Failed to fetch .*( 40[34] | 410 |File not found|Hash Sum mismatch|unexpected size)"
)

_FETCH_HINT = "check the network and the machine's apt sources (apt-get update must work)"


class MovedOn(UserError):
    """The mirror has dropped packages that a snapshot names."""


@dataclass(frozen=True)
class Snapshot:
    """A state of the archive.

    ``indices`` maps each suite to the sha256 of its package index, ``date`` is the newest
    Release date of the suites in seconds since 1970, and the base of every time stamp in a build.
    ``directory`` holds it: ``sources.list`` and ``lists``.
    """

    indices: Mapping[str, str]
    date: int
    directory: Path

    @property
    def key(self) -> str:
        """A short hash of what the snapshot says, wherever it was fetched from."""
        text = "".join(f"{suite} {self.indices[suite]}\n" for suite in sorted(self.indices))
        return _short(f"{text}{self.date}\n")


def current(
    mirrors: archive.Mirrors, caches: Path, *, refresh: bool = False, keyring: str = archive.KEYRING
) -> Snapshot:
    """Return the archive's state, asking the mirrors at most once in :data:`FRESH_FOR` seconds.

    A mirror that cannot be reached is no error while an older snapshot is in the cache.
    """
    pointer = caches / "snapshot"
    with cache.locked(caches / "snapshots.lock"):
        known = _known(pointer, mirrors)
        if known and not refresh and time.time() - pointer.stat().st_mtime < FRESH_FOR:
            return known
        try:
            fetched = _fetch(mirrors, caches, keyring)
        except UserError:
            if known and not refresh:
                return known
            raise
        temporary = pointer.with_suffix(".new")
        temporary.write_text(fetched.directory.name + "\n")
        temporary.replace(pointer)
        cache.prune(caches)
        _prune_downloads(caches)
        return fetched


def _known(pointer: Path, mirrors: archive.Mirrors) -> Snapshot | None:
    """Return the snapshot that ``pointer`` names, if it is whole and of these mirrors."""
    try:
        name = pointer.read_text().strip()
    except OSError:
        return None
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        return None
    directory = pointer.parent / "snapshots" / name
    try:
        if (directory / "sources.list").read_text() != mirrors.sources_list():
            return None
        found = load(directory)
    except (OSError, ValueError):
        return None
    cache.used(directory)
    return found


def load(directory: Path) -> Snapshot:
    """Read a snapshot; the indices are held against their Release files.

    That those are Debian's, apt has verified when it fetched them. Raises :class:`OSError` or
    :class:`ValueError` if something is missing or altered.
    """
    indices: dict[str, str] = {}
    newest = 0
    for suite in archive.SUITES:
        release = _list(directory, f"_dists_{suite}_InRelease")
        expected, date = parse_release(release.read_text("utf-8", "replace"), _INDEX)
        if expected != _EMPTY:
            index = _list(directory, f"_dists_{suite}_{_INDEX.replace('/', '_')}")
            with index.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise ValueError(f"{index} is not what its Release file says")
        indices[suite] = expected
        newest = max(newest, date)
    return Snapshot(indices, newest, directory)


def _list(directory: Path, ending: str) -> Path:
    found = [path for path in (directory / "lists").iterdir() if path.name.endswith(ending)]
    if len(found) != 1:
        raise ValueError(f"{directory}/lists holds {len(found)} files *{ending}, not one")
    return found[0]


def parse_release(text: str, index: str) -> tuple[str, int]:
    """Return (sha256 of ``index``, Date in seconds) from the text of an InRelease file."""
    date = re.search(r"^Date: (.+)$", text, re.MULTILINE)
    digest = re.search(
        rf"^SHA256:\n(?: .+\n)*? ([0-9a-f]{{64}}) +[0-9]+ {re.escape(index)}$", text, re.MULTILINE
    )
    if date is None or digest is None:
        raise ValueError(f"no Date or no {index} in the Release file")
    return digest.group(1), int(parsedate_to_datetime(date.group(1)).astimezone(UTC).timestamp())


def _fetch(mirrors: archive.Mirrors, caches: Path, keyring: str) -> Snapshot:
    """Let apt fetch and verify the lists; the snapshot appears in the cache when it is whole."""
    with cache.scratch(caches) as work:
        directory = work / "snapshot"
        (directory / "lists").mkdir(parents=True)
        (directory / "sources.list").write_text(mirrors.sources_list())
        _update(work, directory / "sources.list", keyring)
        for file in (work / "lists").iterdir():
            if file.is_file() and file.name != "lock":
                # A mirror in the file system is linked to, and must not change under us.
                shutil.copyfile(file, directory / "lists" / file.name)
        try:
            fetched = load(directory)
        except ValueError as error:
            raise UserError(f"the Debian mirror is not whole: {error}", hint=_FETCH_HINT) from None
        # The names of apt's lists derive from the mirrors' addresses, so these belong to the name.
        place = caches / "snapshots" / _short(fetched.key + mirrors.sources_list())
        place.parent.mkdir(exist_ok=True)
        if not _is_whole(place):
            cache.remove(place)
            directory.rename(place)
    return Snapshot(fetched.indices, fetched.date, cache.used(place))


def _is_whole(directory: Path) -> bool:
    try:
        load(directory)
    except (OSError, ValueError):
        return False
    return True


def _update(work: Path, sources: Path, keyring: str) -> None:
    """Run ``apt-get update`` on a state of its own below ``work``; the host's is not touched."""
    trusted = work / "trusted"
    (work / "lists/partial").mkdir(parents=True)
    trusted.mkdir()
    shutil.copyfile(keyring, trusted / "archive.gpg")
    settings = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": trusted,
        "Dir::State": work,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "apt-cache",
        # Nothing here reads these; they are large.
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Architecture": archive.ARCHITECTURE,
        "APT::Architectures": archive.ARCHITECTURE,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    lines = [f'{name} "{value}";' for name, value in settings.items()]
    file = work / "apt.conf"
    file.write_text("\n".join([*lines, *archive.apt_options()]) + "\n")
    try:
        result = subprocess.run(
            ["apt-get", "update", "--error-on=any", "-qq"],
            env={**os.environ, "APT_CONFIG": str(file), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise UserError("apt-get is not installed", hint="building needs apt") from None
    if result.returncode != 0:
        tail = "\n".join(f"  {line}" for line in result.stderr.splitlines()[-8:])
        raise UserError(f"the Debian mirror could not be read:\n{tail}", hint=_FETCH_HINT)


def pinned(directory: str | Path) -> list[str]:
    """Return the options by which mmdebstrap takes packages from the snapshot in ``directory``.

    The lists are copied, not mounted: mmdebstrap empties the directory in the end.
    """
    lists = f"{shlex.quote(str(directory))}/lists"
    return ["--skip=update", f'--setup-hook=cp {lists}/* "$1"/var/lib/apt/lists/']


def kept_downloads(packages: str | Path) -> list[str]:
    """Return the options by which mmdebstrap takes and keeps downloaded packages in ``packages``.

    It is mounted over apt's own directory, so a package is downloaded once, and is unmounted
    before mmdebstrap cleans up. For a private mount namespace.
    """
    inside = '"$1"/var/cache/apt/archives'
    mount = f"mkdir -p {inside} && mount --bind {shlex.quote(str(packages))} {inside}"
    return [
        '--aptopt=APT::Sandbox::User "root"',
        "--skip=download/empty",
        "--skip=essential/unlink",
        f"--setup-hook={mount}",
        f"--customize-hook=umount {inside}",
    ]


def failure(what: str, output: str) -> UserError:
    """Return the error for an installation from a snapshot that failed with apt's ``output``."""
    lines = output.splitlines()
    if gone := [line for line in lines if _MOVED_ON.search(line)]:
        tail = "\n".join(f"  {line}" for line in gone[:5])
        return MovedOn(
            f"{what}: the mirror no longer has packages that its own index names:\n{tail}",
            hint="the archive moved on, or the mirror is being updated; try again with --refresh",
        )
    tail = "\n".join(lines[-15:])
    hint = "if the mirror is at fault, check that apt-get update works on this machine"
    return UserError(f"{what}:\n{tail}", hint=hint)


def _prune_downloads(caches: Path) -> None:
    """Remove the downloaded packages that no snapshot in the cache names."""
    downloads = caches / "downloads" / "apt"
    named: set[str] = set()
    for lists in (caches / "snapshots").glob("*/lists"):
        for index in lists.glob("*_Packages"):
            with index.open(encoding="utf-8", errors="replace") as file:
                named |= file_names(file)
    for package in downloads.glob("*.deb"):
        if package.name not in named:
            package.unlink(missing_ok=True)


def file_names(index: Iterable[str]) -> set[str]:
    """Return the names under which apt keeps the packages of a Packages file.

    apt writes a colon of the version as ``%3a`` (pkgAcqArchive, QuoteString).
    """
    names: set[str] = set()
    fields: dict[str, str] = {}
    for line in [*index, "\n"]:
        if line.startswith(("Package:", "Version:", "Architecture:")):
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif not line.strip() and len(fields) == 3:
            version = fields["Version"].replace(":", "%3a")
            names.add(f"{fields['Package']}_{version}_{fields['Architecture']}.deb")
            fields = {}
    return names


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
