"""Where Debian packages come from.

The mirrors are those that the host's own apt is set up with, so that a site's mirror, proxy and
policy hold for Proa too. Which state of them a build uses is the business of
:mod:`proa.factory.snapshot`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proa.wire.errors import UserError

SUITE = "trixie"
SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
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


@dataclass(frozen=True)
class Mirrors:
    """Base URLs of the archive and of its security part; no trailing slash."""

    archive: str
    security: str

    def suites(self) -> tuple[tuple[str, str], ...]:
        """Return (base URL, suite) of everything that a build may take packages from."""
        stable, updates, security = SUITES
        return (self.archive, stable), (self.archive, updates), (self.security, security)

    def sources_list(self) -> str:
        """Return the one-line-style sources.list of :meth:`suites`."""
        return "".join(f"deb {url} {suite} main\n" for url, suite in self.suites())


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
