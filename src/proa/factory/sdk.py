"""The SDK: a Debian tree with all tools that make a release.

The host needs Python, mmdebstrap and util-linux; every other tool comes from this tree, so every
host makes the same bits. It is entered by a private mount namespace and pivot_root: nothing that
runs inside can leave a mount behind on the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import archive, cache, snapshot
from proa.factory.snapshot import Snapshot
from proa.wire.errors import UserError

Report = Callable[[str], None]

PACKAGES = (
    "apt",
    "ca-certificates",
    "cpio",
    "cryptsetup-bin",
    "debian-archive-keyring",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "grub-common",
    "grub-pc-bin",
    "kmod",
    "libpython3-stdlib",
    "mmdebstrap",
    "mtools",
    "python3",
    "python3-pefile",
    "systemd",
    "systemd-boot-efi",
    "systemd-repart",
    "systemd-ukify",
    "tar",
    "udev",
    "xz-utils",
    "zstd",
    # For the lab: static, so it makes a container image without a registry.
    "busybox-static",
)

# Runs in the new mount namespace. The binds are "source target" pairs in $BINDS, one a line.
_ENTER = r"""
set -e
mount --bind "$SDK" "$SDK"
for d in proc sys dev; do mount --rbind "/$d" "$SDK/$d"; done
mount -t tmpfs -o mode=1777 tmpfs "$SDK/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$SDK/run"
printf '%s' "$BINDS" | while read -r source target; do
    mount --rbind "$source" "$SDK$target"
done
for f in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$f" ] || [ ! -e "$SDK$f" ] || mount --bind "$(readlink -f "$f")" "$SDK$f"
done
cd "$SDK"
pivot_root . mnt
cd /work
umount -l /mnt
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8 TZ=UTC \
    SOURCE_DATE_EPOCH="$EPOCH" PYTHONDONTWRITEBYTECODE=1 ${PROXIES} "$@"
"""

# A process namespace too, so that whatever a tool started ends with it.
_UNSHARE = (
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child",
)


class ToolError(UserError):
    """A tool that failed; ``output`` is all that it said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Sdk:
    """A ready SDK tree at ``path``; ``key`` names its content."""

    path: Path
    key: str

    def run(
        self,
        command: Sequence[str | Path],
        *,
        work: Path,
        epoch: int = 0,
        binds: Mapping[str, Path] | None = None,
    ) -> str:
        """Run ``command`` inside the SDK with ``work`` as ``/work`` and return its output.

        ``binds`` maps further absolute directories of the SDK to directories of the host. Raises
        :class:`ToolError` with the end of the tool's own words when it fails.
        """
        targets = {"/work": work, **(binds or {})}
        for target in targets:
            (self.path / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "SDK": str(self.path),
            "BINDS": "".join(f"{source} {target}\n" for target, source in targets.items()),
            "EPOCH": str(epoch),
            "PROXIES": _proxies(),
        }
        arguments = [str(part) for part in command]
        status, out, err = _unshared(
            ["bash", "-c", _ENTER, "proa-sdk", *arguments], environment=environment
        )
        if status != 0:
            said = err or out
            tail = "\n".join(said.splitlines()[-15:])
            raise ToolError(f"{arguments[0]} failed in the SDK (exit {status}):\n{tail}", said)
        return out

    def library(self, name: str) -> Path:
        """Return a shared library of the SDK; this host can load it, for it needs only libc."""
        return self.path / "usr/lib/x86_64-linux-gnu" / name

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages whose tools shape the bytes of a release."""
        status = subprocess.run(
            [
                "dpkg-query",
                f"--admindir={self.path}/var/lib/dpkg",
                "-W",
                "-f",
                "${Package}\t${Version}\n",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        installed = dict(line.split("\t", 1) for line in status.splitlines() if "\t" in line)
        return {name: installed[name] for name in PACKAGES if name in installed}


def _proxies() -> str:
    names = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return " ".join(f"{n}={os.environ[n]}" for n in names if " " not in os.environ.get(n, " "))


def _unshared(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run ``command`` in namespaces of its own; return its exit status, stdout and stderr.

    Whatever it mounts or starts is gone when it ends, or when this process is interrupted.
    """
    process = subprocess.Popen(
        [*_UNSHARE, "--", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate()
    except BaseException:
        # Ctrl-C: the kernel kills everything in the process namespace with its first process.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def ensure(caches: Path, state: Snapshot, report: Report) -> Sdk:
    """Return the SDK made of ``state``, made anew only if the cache has none.

    It is keyed by its package list and by all that the snapshot says: boot loaders and the UEFI
    stub go from it into the image, so it takes security updates, and what it was made from must
    be what the manifest says.
    """
    require_root()
    listing = "\n".join(sorted(PACKAGES)) + state.key
    key = hashlib.sha256(listing.encode()).hexdigest()[:16]
    tree = caches / "sdk" / key
    with cache.locked(caches / "sdk.lock"):
        if not tree.is_dir():
            report("no SDK in the cache: installing its packages")
            with cache.scratch(caches) as work:
                bootstrap(work / "tree", state, caches / "downloads")
                tree.parent.mkdir(parents=True, exist_ok=True)
                (work / "tree").rename(tree)
    return Sdk(cache.used(tree), key)


def bootstrap(tree: Path, state: Snapshot, downloads: Path) -> None:
    """Make the SDK tree with the host's mmdebstrap; packages are kept in ``downloads``."""
    if shutil.which("mmdebstrap") is None:
        raise UserError("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    with downloading(downloads) as packages:
        status, _, said = _unshared(bootstrap_command(tree, state.directory, packages))
    if status != 0:
        raise snapshot.failure("the SDK could not be installed", said)


def bootstrap_command(tree: Path, state: Path, packages: Path) -> list[str]:
    """Return how mmdebstrap makes the SDK from the snapshot in ``state``."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        "--format=directory",
        f"--architectures={archive.ARCHITECTURE}",
        f"--keyring={archive.KEYRING}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        *(f"--aptopt={line}" for line in archive.apt_options()),
        *snapshot.pinned(state),
        *snapshot.kept_downloads(packages),
        f"--include={','.join(PACKAGES)}",
        archive.SUITE,
        str(tree),
        str(state / "sources.list"),
    ]


@contextlib.contextmanager
def downloading(downloads: Path) -> Iterator[Path]:
    """The directory of downloaded packages, for one apt at a time."""
    packages = downloads / "apt"
    packages.mkdir(parents=True, exist_ok=True)
    with cache.locked(downloads.with_suffix(".lock")):
        yield packages


def require_root() -> None:
    """Raise unless this process may mount and own files as root."""
    if os.geteuid() != 0:
        raise UserError("building needs root (it mounts and keeps file owners)", hint="use sudo")
