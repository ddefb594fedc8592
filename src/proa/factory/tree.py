"""The package tree: Debian packages installed into a tar, cached by what went in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from proa.factory import archive, sdk

# Bump when the way of installing changes the result for the same packages.
_REVISION = 2

# Runs inside the SDK. apt's archive directory is mounted over, so a package is downloaded once;
# it has to be unmounted before mmdebstrap cleans up. Byte code is made with unchecked hashes: all
# time stamps of an image are one, so Python's usual check by time stamp would never hold.
_SCRIPT = r"""
set -e
mkdir -p /cache/apt
exec mmdebstrap --variant=minbase --mode=root --format=tar --architectures=amd64 \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
  --aptopt='APT::Sandbox::User "root"' "$@" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --skip=download/empty --skip=essential/unlink \
  --setup-hook='mkdir -p "$1"/var/cache/apt/archives "$1"/etc/kernel "$1"/etc/initramfs-tools' \
  --setup-hook='mount --bind /cache/apt "$1"/var/cache/apt/archives' \
  --customize-hook='umount "$1"/var/cache/apt/archives' \
  --customize-hook='find "$1"/usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +' \
  --customize-hook='chroot "$1" python3 -m compileall -q -j0 \
    --invalidation-mode unchecked-hash /usr/lib/python3.13 /usr/lib/python3/dist-packages' \
  --include="$(paste -sd, /work/packages)" \
  "$(cat /work/suite)" /work/root.tar /work/sources.list
"""


def ensure(
    packages: Sequence[str],
    tools: sdk.Sdk,
    cache: Path,
    mirrors: archive.Mirrors,
    snapshot: archive.Snapshot,
    report: sdk.Report,
) -> Path:
    """Return a tar of Debian with ``packages`` installed, from the cache if it has one.

    The tar is the unpruned tree with its dpkg database; what it holds depends only on the package
    names and the snapshot.
    """
    words = "\n".join([str(_REVISION), tools.key, snapshot.key(), *packages])
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    target = cache / "trees" / f"{key}.tar"
    with sdk.locked(cache / "trees.lock"):
        if target.exists():
            return target
        report(f"installing {len(packages)} packages and what they need")
        target.parent.mkdir(parents=True, exist_ok=True)
        with sdk.scratch(cache) as work:
            (work / "packages").write_text("\n".join(packages))
            (work / "suite").write_text(archive.SUITE)
            (work / "sources.list").write_text(mirrors.sources_list())
            downloads = cache / "downloads"
            downloads.mkdir(exist_ok=True)
            tools.run(
                ["sh", "-c", _SCRIPT, "sh", *(f"--aptopt={o}" for o in archive.apt_options())],
                work=work,
                epoch=snapshot.date,
                binds={"/cache": downloads},
            )
            (work / "root.tar").rename(target)
    return target
