"""The package tree: Debian packages installed into a tar, cached by what went in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from proa.factory import archive, cache, sdk, snapshot
from proa.factory.snapshot import Snapshot

# Bump when the way of installing changes the result for the same packages.
_REVISION = 3

# Runs inside the SDK. Byte code is made with unchecked hashes: all time stamps of an image are one,
# so Python's usual check by time stamp would never hold.
_SCRIPT = r"""
set -e
exec mmdebstrap --variant=minbase --mode=root --format=tar --architectures=amd64 \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "$@" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --setup-hook='mkdir -p "$1"/etc/kernel "$1"/etc/initramfs-tools' \
  --customize-hook='find "$1"/usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +' \
  --customize-hook='chroot "$1" python3 -m compileall -q -j0 \
    --invalidation-mode unchecked-hash /usr/lib/python3.13 /usr/lib/python3/dist-packages' \
  --include="$(paste -sd, /work/packages)" \
  "$(cat /work/suite)" /work/root.tar /snapshot/sources.list
"""


def ensure(
    packages: Sequence[str], tools: sdk.Sdk, caches: Path, state: Snapshot, report: sdk.Report
) -> Path:
    """Return a tar of Debian with ``packages`` installed, from the cache if it has one.

    The tar is the unpruned tree with its dpkg database; what it holds depends only on the package
    names and the snapshot.
    """
    words = "\n".join([str(_REVISION), tools.key, state.key, *packages])
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    target = caches / "trees" / f"{key}.tar"
    with cache.locked(caches / "trees.lock"):
        if not target.exists():
            report(f"installing {len(packages)} packages and what they need")
            target.parent.mkdir(parents=True, exist_ok=True)
            with cache.scratch(caches) as work:
                (work / "packages").write_text("\n".join(packages))
                (work / "suite").write_text(archive.SUITE)
                _install(work, tools, caches / "downloads", state)
                (work / "root.tar").rename(target)
    return cache.used(target)


def _install(work: Path, tools: sdk.Sdk, downloads: Path, state: Snapshot) -> None:
    with sdk.downloading(downloads) as packages:
        try:
            tools.run(
                ["sh", "-c", _SCRIPT, "sh", *options()],
                work=work,
                epoch=state.date,
                binds={"/snapshot": state.directory, "/packages": packages},
            )
        except sdk.ToolError as error:
            raise snapshot.failure("the packages could not be installed", error.output) from None


def options() -> list[str]:
    """Return mmdebstrap's options for what the SDK sees as ``/snapshot`` and ``/packages``."""
    return [
        *(f"--aptopt={line}" for line in archive.apt_options()),
        *snapshot.pinned("/snapshot"),
        *snapshot.kept_downloads("/packages"),
    ]
