"""Pairs of releases to make update payloads of, from what the archive offers on the day.

An archive has few old versions. Where a package has several in Debian stable (its main archive,
its updates, its security updates), the lowest stands for last month and the highest for today:

    A  last month: the lowest versions, and the older of stable's kernels
    B  A with today's openssl, curl and zlib: a security update of one library or so
    S  A with today's openssh, libssh2 and nghttp2: the same of other sources
    C  today: the highest versions, and the newer kernel
    D  C with etcd and runc from the next Debian: programs in Go, by another compiler
    F  the next Debian

With a "u" behind the letter, its kernel modules are unpacked (.ko, not .ko.xz): what that is worth
to an update, and what it costs in size.

Each is made by Proa's own factory, from the packages of Proa's own recipe.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from proa.factory import archive, build, cache, recipe, sdk, snapshot
from proa.factory.snapshot import Snapshot
from proa.wire import manifest
from proa.wire.errors import UserError
from proa.wire.version import parse

STABLE = "trixie"
NEXT = "forky"
PAIRS: Mapping[str, tuple[str, str]] = {
    "small": ("A", "B"),
    "small-ssh": ("A", "S"),
    "monthly-nogo": ("A", "C"),
    "monthly": ("A", "D"),
    "monthly-ko": ("Au", "Du"),
    "major": ("C", "F"),
}
# Source packages of the small updates.
SMALL: Mapping[str, tuple[str, ...]] = {
    "A": (),
    "B": ("openssl", "curl", "zlib"),
    "S": ("openssh", "libssh2", "nghttp2"),
}
# What D takes from the next Debian.
GO = ("etcd-client", "etcd-server", "runc")
# Their two versions in stable differ only in the Go compiler that rebuilt them. What that does to
# a delta is the affair of D.
SAME = ("docker.io", "docker-cli")

_VERSIONS = {"A": "1.0.0", "B": "1.0.1", "S": "1.0.2", "C": "1.1.0", "D": "1.1.1", "F": "2.0.0"}
# Time stamps, in days before the archive's own: no two releases of a machine are of one moment.
_DAYS_AGO = {"A": 30, "B": 23, "S": 22, "C": 1, "D": 0, "F": 0}

# As proa.factory.tree installs, but with apt preferences and for any version of Python.
_INSTALL = r"""
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
  --setup-hook='cp /work/preferences "$1"/etc/apt/preferences.d/bench' \
  --customize-hook='umount "$1"/var/cache/apt/archives' \
  --customize-hook='find "$1"/usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +' \
  --customize-hook='chroot "$1" sh -c "python3 -m compileall -q -j0 \
    --invalidation-mode unchecked-hash /usr/lib/python3.* /usr/lib/python3/dist-packages"' \
  --customize-hook='[ ! -e /work/unpack ] ||
    find "$1"/usr/lib/modules -name "*.ko.xz" -exec xz -d {} +' \
  --customize-hook='for kernel in "$1"/usr/lib/modules/*; do depmod -b "$1" "${kernel##*/}"; done' \
  --include="$(paste -sd, /work/packages)" \
  "$(cat /work/suite)" /work/root.tar /work/sources.list
"""


@dataclass(frozen=True)
class State:
    """Which packages a release is made of: sources (base URL, suite), pins, and names."""

    suites: tuple[tuple[str, str], ...]
    packages: tuple[str, ...]
    preferences: str = ""

    @property
    def sources_list(self) -> str:
        return "".join(f"deb {url} {suite} main\n" for url, suite in self.suites)


@dataclass(frozen=True)
class Offer:
    """One version of a binary package in an index of the archive."""

    name: str
    version: str
    source: str


class Maker:
    """Makes releases below ``place``: ``releases/ID``, ``trees/ID.tar``, and a link per pair."""

    def __init__(self, place: Path, report: sdk.Report) -> None:
        sdk.require_root()
        self.place, self.report = place, report
        # A cache of its own: the SDK of a running benchmark is not cleared away by a build.
        self.cache = place / "cache"
        self.mirrors = archive.find_mirrors()
        self.stable = snapshot.current(self.mirrors, self.cache)
        self.tools = sdk.ensure(self.cache, self.stable, report)
        self._indices: dict[tuple[str, str], tuple[str, int]] = {}

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the two release directories of a pair, made if they are not there yet."""
        old, new = (self._linked(name, kind) for kind in PAIRS[name])
        return old, new

    def _linked(self, pair: str, kind: str) -> Path:
        made = self.release(kind)
        link = self.place / pair / kind
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(Path("..", "releases", kind))
        return made

    def release(self, kind: str) -> Path:
        """Return the release directory of ``kind``: A, B, S, C, D or F, perhaps with a "u"."""
        target = self.place / "releases" / kind
        if not target.exists():
            root = self.cache / "root.json"
            root.write_text("{}")
            self.build(kind, _VERSIONS[kind[0]], root, target)
        return target

    def build(self, kind: str, version: str, root: Path, target: Path) -> None:
        """Build the packages of ``kind`` as ``version``, which trusts ``root``."""
        state = self.state(kind[0])
        packages = self._install(kind, state)
        archived = self._snapshot(state)
        epoch = archived.date - _DAYS_AGO[kind[0]] * 86400
        options = build.BuildOptions(
            parse(version), root, target, self.cache, compression="zstd", epoch=epoch
        )

        def report(text: str) -> None:
            self.report(f"release {kind}: {text}")

        build.build_from(packages, archived, self.tools, options, report)

    def state(self, kind: str) -> State:
        """Return what release ``kind`` is made of, by what the archive offers now."""
        stable = self.mirrors.suites()
        following = (self.mirrors.archive, NEXT)
        names = recipe.load(recipe.DEFAULT).packages
        go_pins = pin(SAME, f"release n={STABLE}", 1001)
        match kind:
            case "C":
                return State(stable, names, go_pins)
            case "D":
                later = f"release n={NEXT}"
                stanzas = [go_pins, pin(["*"], later, 100), pin(GO, later, 990)]
                return State((*stable, following), names, "\n".join(stanzas))
            case "F":
                return State((following,), names)
        # A, B and S: hold back what today's release has and stable has an older version of.
        today = manifest.load((self.release("C") / manifest.MANIFEST).read_bytes()).packages
        offers = [offer for base, suite in stable for offer in self._offers(base, suite)]
        held = held_back([package.name for package in today], offers)
        held = [offer for offer in held if offer.source not in SMALL[kind]]
        pins = "\n".join(pin([offer.name], f"version {offer.version}", 1001) for offer in held)
        meta = recipe.load(recipe.DEFAULT).kernel_package
        kernel = older_kernel(meta, self._offers(self.mirrors.archive, STABLE))
        return State(stable, tuple(sorted({*names, kernel} - {meta})), go_pins + "\n" + pins)

    def _install(self, kind: str, state: State) -> Path:
        target = self.place / "trees" / f"{kind}.tar"
        if target.exists():
            return target
        self.report(f"release {kind}: installing {len(state.packages)} packages and their needs")
        target.parent.mkdir(parents=True, exist_ok=True)
        with cache.scratch(self.cache) as work:
            (work / "packages").write_text("\n".join(state.packages))
            (work / "suite").write_text(state.suites[0][1])
            (work / "sources.list").write_text(state.sources_list)
            (work / "preferences").write_text(state.preferences)
            if kind.endswith("u"):
                (work / "unpack").touch()
            # Not the factory's own, which forgets packages that are not of its snapshot.
            downloads = self.cache / "bench-downloads"
            downloads.mkdir(exist_ok=True)
            options = [f"--aptopt={line}" for line in archive.apt_options()]
            epoch = self._snapshot(state).date
            self.tools.run(
                ["sh", "-c", _INSTALL, "sh", *options],
                work=work,
                epoch=epoch,
                binds={"/cache": downloads},
            )
            (work / "root.tar").rename(target)
        return target

    def _snapshot(self, state: State) -> Snapshot:
        """Return what the archive is now, for the manifest; its lists are only of stable."""
        found = {suite: self._index(base, suite) for base, suite in state.suites}
        indices = {suite: digest for suite, (digest, _) in found.items()}
        return Snapshot(indices, max(date for _, date in found.values()), self.stable.directory)

    def _index(self, base: str, suite: str) -> tuple[str, int]:
        if (base, suite) not in self._indices:
            text = fetch(f"{base}/dists/{suite}/InRelease").decode("utf-8", "replace")
            self._indices[base, suite] = snapshot.parse_release(text, _INDEX)
        return self._indices[base, suite]

    def _offers(self, base: str, suite: str) -> list[Offer]:
        packed = fetch(f"{base}/dists/{suite}/{_INDEX}")
        if hashlib.sha256(packed).hexdigest() != self._index(base, suite)[0]:
            raise UserError(f"the package index of {suite} is not that of its Release file")
        return list(parse_index(lzma.decompress(packed).decode()))


_INDEX = f"main/binary-{archive.ARCHITECTURE}/Packages.xz"


def fetch(url: str) -> bytes:
    # The scheme comes from the host's own apt configuration.
    with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310
        data: bytes = reply.read(64 << 20)
    return data


def parse_index(text: str) -> Iterable[Offer]:
    """Yield the packages of a Packages file."""
    for block in text.split("\n\n"):
        found = re.findall(r"^(Package|Version|Source): (\S+)", block, re.MULTILINE)
        fields: dict[str, str] = dict(found)
        if name := fields.get("Package"):
            yield Offer(name, fields["Version"], fields.get("Source", name))


def held_back(wanted: Iterable[str], offers: Iterable[Offer]) -> list[Offer]:
    """Return the lowest offer of each wanted package that is offered in several versions."""
    by_name: dict[str, dict[str, Offer]] = {}
    for offer in offers:
        by_name.setdefault(offer.name, {})[offer.version] = offer
    several = {name: by_name[name] for name in wanted if len(by_name.get(name, ())) > 1}
    return [
        min(several[name].values(), key=cmp_to_key(compare))
        for name in sorted(several)
        if name not in SAME
    ]


def older_kernel(meta: str, offers: Iterable[Offer]) -> str:
    """Return the oldest package of the kernel that ``meta`` (linux-image-cloud-amd64) stands for.

    A point release keeps the kernel of the one before beside its own.
    """
    flavour = re.escape(meta.removeprefix("linux-image"))
    kernel = re.compile(rf"linux-image-\d[^-]*{flavour}")
    found = [offer for offer in offers if kernel.fullmatch(offer.name)]
    if not found:
        raise UserError(f"the archive has no kernel for {meta}")
    return min(found, key=cmp_to_key(compare)).name


def compare(one: Offer, other: Offer) -> int:
    """Return -1, 0 or 1 as Debian orders two versions."""
    for relation, result in (("lt", -1), ("gt", 1)):
        command = ["dpkg", "--compare-versions", one.version, relation, other.version]
        if subprocess.run(command, check=False).returncode == 0:
            return result
    return 0


def pin(names: Iterable[str], to: str, priority: int) -> str:
    """Return a stanza of apt's preferences."""
    return f"Package: {' '.join(names)}\nPin: {to}\nPin-Priority: {priority}\n"


def changes(old: Path, new: Path) -> list[tuple[str, str, str]]:
    """Return (package, old version or "-", new version or "-") of what differs, by name.

    Names of kernel packages have a version in them, so a new one is another package.
    """
    before, after = (
        {p.name: p.version for p in manifest.load((d / manifest.MANIFEST).read_bytes()).packages}
        for d in (old, new)
    )
    return [
        (name, before.get(name, "-"), after.get(name, "-"))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
