"""Where Debian packages come from, and which state of the archive a build uses.

The mirrors are those that the host's own apt is set up with, so that a site's mirror, proxy and
policy hold for Proa too. A *snapshot* is the state of all index files at one moment: two builds
from the same snapshot and recipe give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from proa.wire.errors import UserError

SUITE = "trixie"
ARCHITECTURE = "amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Suites of the main archive by which a configured source is known to be a Debian mirror.
_DEBIAN = re.compile(
    r"(bullseye|bookworm|trixie|forky|sid|stable|oldstable|testing|unstable)(-updates)?"
)
_SECURITY = re.compile(r"[a-z]+(-security|/updates)")

# apt settings of the host that say how its mirror is reached and how far it is trusted.
_INHERITED = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)

# How long a snapshot is taken as current before the archive is asked again, in seconds.
FRESH_FOR = 24 * 3600


@dataclass(frozen=True)
class Mirrors:
    """Base URLs of the archive and of its security part; no trailing slash."""

    archive: str
    security: str

    def suites(self) -> tuple[tuple[str, str], ...]:
        """Return (base URL, suite) of everything that a build may take packages from."""
        return (
            (self.archive, SUITE),
            (self.archive, f"{SUITE}-updates"),
            (self.security, f"{SUITE}-security"),
        )

    def sources_list(self) -> str:
        """Return the one-line-style sources.list of :meth:`suites`."""
        return "".join(f"deb {url} {suite} main\n" for url, suite in self.suites())


@dataclass(frozen=True)
class Snapshot:
    """A state of the archive.

    ``indices`` maps each suite to the sha256 of its package index, ``date`` is the newest
    Release date of the suites in seconds since 1970, and the base of every time stamp in a build.
    """

    indices: Mapping[str, str]
    date: int

    def key(self, suites: Iterable[str] | None = None) -> str:
        """Return a short content hash of the given suites, or of all."""
        wanted = sorted(self.indices if suites is None else suites)
        text = "".join(f"{suite} {self.indices[suite]}\n" for suite in wanted)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_mirrors(environ: Mapping[str, str] = os.environ) -> Mirrors:
    """Return the host's Debian mirrors, or those named by ``PROA_MIRROR``.

    Raises :class:`UserError` on a host whose apt knows no Debian mirror (Ubuntu, say).
    """
    if url := environ.get("PROA_MIRROR", "").rstrip("/"):
        security = environ.get("PROA_SECURITY_MIRROR", "").rstrip("/")
        return Mirrors(url, security or f"{url}-security")
    return choose_mirrors(_configured_sources())


def choose_mirrors(sources: Iterable[tuple[str, str]]) -> Mirrors:
    """Pick the mirrors from (URL, suite) pairs, the first of each kind winning."""
    archive = security = ""
    for url, suite in sources:
        if _SECURITY.fullmatch(suite) and "debian" in url:
            security = security or url.rstrip("/")
        elif _DEBIAN.fullmatch(suite):
            archive = archive or url.rstrip("/")
    if not archive:
        raise UserError(
            "this machine's apt has no Debian mirror to take packages from",
            hint="name one: PROA_MIRROR=<URL of a Debian mirror> ./proa …"
            " (and PROA_SECURITY_MIRROR=<URL> if it is not at the same place with '-security')",
        )
    return Mirrors(archive, security or f"{archive}-security")


def _configured_sources() -> list[tuple[str, str]]:
    try:
        listing = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return [
        (fields[0], fields[1]) for line in listing.splitlines() if len(fields := line.split()) == 2
    ]


def apt_options() -> list[str]:
    """Return the host's apt settings about reaching its mirror, as ``Key "value";`` lines."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump"], check=True, capture_output=True, text=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return [line for line in dump.splitlines() if line.split(" ", 1)[0] in _INHERITED]


def current_snapshot(mirrors: Mirrors, cache: Path, *, refresh: bool = False) -> Snapshot:
    """Return the archive's state, asking the mirrors at most once in :data:`FRESH_FOR` seconds.

    A mirror that cannot be reached is no error while an older snapshot is in the cache.
    """
    file = cache / "snapshot.json"
    cached = _load(file)
    if cached and not refresh and time.time() - file.stat().st_mtime < FRESH_FOR:
        return cached
    try:
        fetched = _fetch(mirrors)
    except (OSError, ValueError) as error:
        if cached and not refresh:
            return cached
        raise UserError(
            f"the Debian mirror could not be read: {error}",
            hint="check the network and the machine's apt sources (apt-get update must work)",
        ) from None
    cache.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({"indices": dict(fetched.indices), "date": fetched.date}))
    temporary.replace(file)
    return fetched


def _load(file: Path) -> Snapshot | None:
    try:
        document = json.loads(file.read_text())
        return Snapshot(dict(document["indices"]), int(document["date"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetch(mirrors: Mirrors) -> Snapshot:
    indices: dict[str, str] = {}
    newest = 0
    for base, suite in mirrors.suites():
        url = f"{base}/dists/{suite}/InRelease"
        try:
            # The scheme comes from the host's own apt configuration.
            with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310
                text = reply.read(4 << 20).decode("utf-8", "replace")
        except urllib.error.URLError as error:
            raise OSError(f"{url}: {error.reason}") from None
        digest, date = parse_release(text, f"main/binary-{ARCHITECTURE}/Packages.xz")
        indices[suite] = digest
        newest = max(newest, date)
    return Snapshot(indices, newest)


def parse_release(text: str, index: str) -> tuple[str, int]:
    """Return (sha256 of ``index``, Date in seconds) from the text of an InRelease file.

    Only used as a cache key and a time stamp: the signature is apt's business, which reads the
    same file again when it installs.
    """
    date = re.search(r"^Date: (.+)$", text, re.MULTILINE)
    digest = re.search(
        rf"^SHA256:\n(?: .+\n)*? ([0-9a-f]{{64}}) +[0-9]+ {re.escape(index)}$", text, re.MULTILINE
    )
    if date is None or digest is None:
        raise ValueError(f"no Date or no {index} in the Release file")
    return digest.group(1), int(parsedate_to_datetime(date.group(1)).astimezone(UTC).timestamp())
