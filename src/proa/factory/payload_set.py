"""The payloads that a release is published with: the full one, and deltas from the latest versions.

Patches are kept in ``<repository>/patches`` by the hashes of both sides, so that a run that was
stopped goes on, and a change that several older versions lack is worked out once. They are no
targets and are never served; the directory may be removed at any time, and costs time only. What
was not used for long goes by itself where it comes to more than ``cache.PATCHES`` bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from proa.factory import compressor, payload, payload_file, repository
from proa.factory.payload import Release, Report
from proa.factory.repository import Listed
from proa.wire.errors import UserError
from proa.wire.version import Version, parse

FULL = ""  # in the place of the version that a payload starts from


def missing(version: Version, listed: Sequence[Listed], deltas: int, full: bool) -> list[str]:
    """Return the versions that ``version`` still wants a payload from, the latest first.

    Those are the ``deltas`` latest older ones that are published, and :data:`FULL` if asked for.
    """
    older = [v.version for v in listed if not v.withdrawn and parse(v.version) < version]
    older.sort(key=parse, reverse=True)
    payloads = [p for found in listed if found.version == str(version) for p in found.payloads]
    origins = {payload.origin for payload in payloads if payload.source}
    wanted = [name for name in older[:deltas] if name not in origins]
    return wanted if not full or any(not p.source for p in payloads) else [FULL, *wanted]


def tools(release: Release, store: Path, cache: Path) -> payload.Tools:
    """Return what making a payload needs whose machines run ``release``."""
    found = compressor.of_image(release.usr, release.manifest, cache)
    return payload.Tools(found.codec, store, os.cpu_count() or 1, found.name)


def make_for(
    origin: str, release: Path, repo: Path, scratch: Path, cache: Path, report: Report
) -> Path:
    """Make the payload from the published version ``origin`` to ``release``; return its file.

    It is made in ``scratch``, an existing directory.
    """
    new = payload.open_release(release)
    old = None
    if origin != FULL:
        report("reading the published release")
        old = payload.open_release(repository.find_release(repo, origin, scratch / origin))
        if old.manifest.architecture != new.manifest.architecture:
            raise UserError(
                f"{origin} is for {old.manifest.architecture}, {new.manifest.version} for "
                f"{new.manifest.architecture}",
                hint="a repository serves one architecture; use --deltas 0",
            )
    source = old.manifest.root_hash if old else ""
    out = scratch / payload_file.target_name(source)
    payload.make(old, new, out, tools(old or new, repo / "patches", cache), report)
    return out
