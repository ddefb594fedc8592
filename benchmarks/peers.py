"""What makes small updates today, each run by its own program on the same two releases.

A peer is a function from a :class:`Bench` to an :class:`Outcome`. All run in a Debian tree of
their own (:func:`install`): nothing is installed on the host. An output that differs from the new
release raises :class:`Failed`, as does a peer's own failure.
"""

from __future__ import annotations

import bz2
import contextlib
import filecmp
import hashlib
import itertools
import lzma
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks import pairs, ranges

from proa.factory import archive, cache, sdk
from proa.factory.sdk import Sdk
from proa.wire.errors import UserError

# Python is a machine's own, which applies Proa's payloads.
PACKAGES = (
    *("bsdiff", "casync", "ostree", "python3", "time", "xdelta3", "xz-utils", "zchunk", "zstd"),
)
# Not in stable.
NEXT_PACKAGES = ("desync",)

# Under this much memory an update has to be applied on a machine.
SMALL_MEMORY = 64 << 20
# Seconds of user and of system, and KiB of the largest process.
_TIME = '-q -f "%U %S %M"'
_BLOCK = 4096
_HASH = 32


class Failed(Exception):
    """A peer did not do it; the message says what happened."""


@dataclass(frozen=True)
class Usage:
    """CPU in seconds (user and system, all processes), memory in bytes (the largest process)."""

    cpu: float = 0.0
    memory: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu + other.cpu, max(self.memory, other.memory))


@dataclass(frozen=True)
class Outcome:
    """What one peer needed. ``apply`` is None where it has no way to apply.

    ``fits`` says whether applying worked with :data:`SMALL_MEMORY`; None if that was not tried.
    """

    bytes: int
    make: Usage
    apply: Usage | None
    fits: bool | None = None
    note: str = ""


class Runner:
    """Runs programs and tells what they used. ``limit`` is the CPU seconds that one may take."""

    def __init__(self, work: Path, limit: int) -> None:
        self.work, self.limit = work, limit

    def run(self, *command: str, memory: int | None = None) -> Usage:
        """Run a program, or raise :class:`Failed`. ``memory``: in a cgroup of that many bytes."""
        usage = self.work / "usage"
        usage.unlink(missing_ok=True)
        with cage(memory) as entry:
            try:
                self._start(f"{entry}ulimit -t {self.limit}; exec", command)
            except UserError as error:
                raise Failed(self._why(usage, str(error))) from None
        return read_usage(usage)

    def _start(self, before: str, command: Sequence[str]) -> None:
        """Run ``command`` under time(1), after the shell's ``before``. Raises UserError."""
        raise NotImplementedError

    def _why(self, usage: Path, words: str) -> str:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if read_usage(usage).cpu >= self.limit - 1:
                return f"not finished in {self.limit} CPU s"
        return " ".join(words.split())[:160]

    def apply(self, *command: str) -> tuple[Usage, bool | None]:
        """Run a program that applies an update: in little memory if it can, else freely."""
        if not can_cage():
            return self.run(*command), None
        try:
            return self.run(*command, memory=SMALL_MEMORY), True
        except Failed:
            return self.run(*command), False


class Bench(Runner):
    """Runs the peers' programs on one part of a pair of releases.

    ``old`` and ``new`` each hold ``image`` (one file) and ``tree`` (the same as files). Programs
    see them as ``/old`` and ``/new``, and ``work``, which is empty at first, as ``/work``.
    """

    def __init__(self, tools: Sdk, old: Path, new: Path, work: Path, limit: int) -> None:
        super().__init__(work, limit)
        self.tools, self.old, self.new = tools, old, new

    def _start(self, before: str, command: Sequence[str]) -> None:
        self.tools.run(
            ["bash", "-c", f'{before} time {_TIME} -o /work/usage "$@"', "bench", *command],
            work=self.work,
            binds={"/old": self.old, "/new": self.new},
        )

    def size(self, name: str) -> int:
        """Return the bytes of a file, or of all files below a directory, of ``work``."""
        return size(self.work / name)

    def check(self, name: str) -> None:
        """Raise unless the file ``name`` of ``work`` is the new image, byte for byte."""
        if subprocess.run(["cmp", "-s", self.work / name, self.new / "image"]).returncode != 0:
            raise Failed("the output is not the new image")
        (self.work / name).unlink()


class Host(Runner):
    """Runs programs of the host, by the time(1) of the peers' tree ``tools``."""

    def __init__(self, tools: Sdk, work: Path, limit: int) -> None:
        super().__init__(work, limit)
        self.tools = tools

    def _start(self, before: str, command: Sequence[str]) -> None:
        tree = self.tools.path
        libraries = f"{tree}/usr/lib/x86_64-linux-gnu"
        # The peak of a process that Python started itself would count Python's own memory.
        timer = f"{tree}/usr/lib64/ld-linux-x86-64.so.2 --library-path {libraries}"
        script = f'{before} {timer} {tree}/usr/bin/time {_TIME} -o {self.work}/usage "$@"'
        result = subprocess.run(
            ["bash", "-c", script, "bench", *command], capture_output=True, text=True
        )
        if result.returncode != 0:
            raise UserError((result.stderr or result.stdout)[-160:])


def size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def read_usage(file: Path) -> Usage:
    """Read what time(1) has left: seconds of user and system, and the peak in KiB."""
    user, system, peak = file.read_text().splitlines()[-1].split()
    return Usage(float(user) + float(system), int(peak) * 1024)


def _controller() -> tuple[Path, str] | None:
    """Return where memory cgroups are made, and the file in each that limits it."""
    root = Path("/sys/fs/cgroup")
    if (root / "memory/memory.limit_in_bytes").exists():
        return root / "memory", "memory.limit_in_bytes"
    with contextlib.suppress(OSError):
        if "memory" in (root / "cgroup.subtree_control").read_text().split():
            return root, "memory.max"
    return None


def can_cage() -> bool:
    """Whether this host lets us make cgroups that limit memory (v1, or v2 at its root)."""
    return _controller() is not None and os.access("/sys/fs/cgroup", os.W_OK)


@contextlib.contextmanager
def cage(memory: int | None) -> Iterator[str]:
    """Give a line of shell that puts the shell under a limit of ``memory`` bytes, page cache too.

    No systemd is needed. There is no swap in the limit: whatever does not fit is killed.
    """
    if memory is None or (found := _controller()) is None:
        yield ""
        return
    root, file = found
    group = root / f"proa-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(str(memory))
        yield f"echo 0 > {group}/cgroup.procs; "
    finally:
        group.rmdir()


def install(place: Path, maker: pairs.Maker, report: sdk.Report) -> Sdk:
    """Return a Debian tree with all peers, made once."""
    wanted = " ".join((*PACKAGES, *NEXT_PACKAGES))
    tree = place / f"peers-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    if not tree.is_dir():
        report("installing the peers into a tree of their own")
        with cache.scratch(maker.cache) as work:
            following = f"release n={pairs.NEXT}"
            stanzas = [pairs.pin(["*"], following, 100), pairs.pin(NEXT_PACKAGES, following, 990)]
            (work / "preferences").write_text("\n".join(stanzas))
            suites = (*maker.mirrors.suites(), (maker.mirrors.archive, pairs.NEXT))
            state = pairs.State(suites, ())
            (work / "sources.list").write_text(state.sources_list)
            maker.tools.run(
                [
                    "mmdebstrap",
                    "--variant=minbase",
                    "--mode=root",
                    "--format=directory",
                    '--aptopt=APT::Install-Recommends "false"',
                    *(f"--aptopt={line}" for line in archive.apt_options()),
                    '--setup-hook=cp /work/preferences "$1"/etc/apt/preferences.d/bench',
                    f"--include={','.join((*PACKAGES, *NEXT_PACKAGES))}",
                    pairs.STABLE,
                    "/work/tree",
                    "/work/sources.list",
                ],
                work=work,
            )
            (work / "tree").rename(tree)
    return Sdk(tree, "peers")


def versions(tools: Sdk) -> dict[str, str]:
    """Return the peers' package versions."""
    wanted = {*PACKAGES, *NEXT_PACKAGES} - {"time"}
    text = subprocess.run(
        [
            "dpkg-query",
            f"--admindir={tools.path}/var/lib/dpkg",
            *("-W", "-f", "${Package}\t${Version}\n"),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    installed = dict(line.split("\t", 1) for line in text.splitlines())
    return {name: installed[name] for name in sorted(wanted)}


# --- whole images ---------------------------------------------------------------------------


def xdelta3(bench: Bench) -> Outcome:
    """VCDIFF with the whole old image as its window: what mender-binary-delta does."""
    window = f"-B{min(max(size(bench.old / 'image'), 1 << 20), (1 << 31) - 1)}"
    options = ("xdelta3", "-f", window, "-s", "/old/image")
    make = bench.run(*options, "-e", "-9", "-S", "lzma", "/new/image", "/work/patch")
    apply, fits = bench.apply(*options, "-d", "/work/patch", "/work/out")
    bench.check("out")
    return Outcome(bench.size("patch"), make, apply, fits)


def zstd(level: int) -> Callable[[Bench], Outcome]:
    def peer(bench: Bench) -> Outcome:
        largest = max(size(bench.old / "image"), size(bench.new / "image"))
        window = f"--long={min(31, max(27, largest.bit_length()))}"
        options = ("zstd", "-q", "-f", window, "--patch-from=/old/image")
        make = bench.run(*options, f"-{level}", "/new/image", "-o", "/work/patch")
        apply, fits = bench.apply(*options, "-d", "/work/patch", "-o", "/work/out")
        bench.check("out")
        return Outcome(bench.size("patch"), make, apply, fits)

    peer.__doc__ = f"zstd -{level} with the old image as its dictionary."
    return peer


def desync(bench: Bench) -> Outcome:
    """Content-defined chunks of 64 KiB, zstd each, and their index: casync's format, in Go."""
    (bench.work / "store").mkdir()
    (bench.work / "old").symlink_to("/old/image")
    bench.run("desync", "make", "-n", "1", "-s", "/work/store", "/work/old.caibx", "/old/image")
    before = bench.size("store")
    make = bench.run(
        *("desync", "make", "-n", "1", "-s", "/work/store", "/work/new.caibx", "/new/image")
    )
    chunks = bench.size("store") - before
    index = bench.size("new.caibx")
    apply, fits = bench.apply(
        *("desync", "extract", "-n", "1", "-s", "/work/store", "--seed", "/work/old.caibx"),
        *("/work/new.caibx", "/work/out"),
    )
    bench.check("out")
    return Outcome(chunks + index, make, apply, fits, f"index {index}")


def casync(bench: Bench) -> Outcome:
    """The same by casync, in C."""
    store = "--store=/work/store.castr"
    bench.run("casync", "make", store, "/work/old.caibx", "/old/image")
    before = bench.size("store.castr")
    make = bench.run("casync", "make", store, "/work/new.caibx", "/new/image")
    index = bench.size("new.caibx")
    chunks = bench.size("store.castr") - before
    try:
        apply, fits = bench.apply(
            *("casync", "extract", store, "--seed=/old/image", "/work/new.caibx", "/work/out")
        )
        bench.check("out")
    except Failed as error:
        return Outcome(chunks + index, make, None, None, f"apply failed: {error}")
    return Outcome(chunks + index, make, apply, fits, f"index {index}")


def zchunk(bench: Bench) -> Outcome:
    """zchunk, as SWUpdate fetches it: by HTTP, as many byte ranges as the old file lacks."""
    bench.run("zck", "-o", "/work/old.zck", "/old/image")
    (bench.work / "served").mkdir()
    make = bench.run("zck", "-o", "/work/served/out.zck", "/new/image")
    with ranges.serving(bench.work / "served") as server:
        fetch = f"cd /work && zckdl -q --source old.zck {server.url}/out.zck"
        apply = bench.run("sh", "-c", fetch)
    apply += bench.run("sh", "-c", "cd /work && unzck out.zck")
    bench.check("out")
    return Outcome(server.sent, make, apply, None, "bytes of HTTP bodies")


def rauc(bench: Bench) -> Outcome:
    """RAUC's adaptive "block-hash-index", emulated: the 4 KiB blocks that the old image lacks.

    The real one reads its bundle through an NBD device and device-mapper. Here: the missing blocks
    in one zstd -3 stream (a bundle is a squashfs, whose blocks are smaller, so this flatters) and
    the index of the new image, 32 bytes a block.
    """
    started = os.times()
    have = {digest: number for number, digest in enumerate(block_digests(bench.old / "image"))}
    wanted = list(block_digests(bench.new / "image"))
    missing: dict[bytes, int] = {}
    with (bench.work / "missing").open("wb") as out, (bench.new / "image").open("rb") as new:
        for number, digest in enumerate(wanted):
            if digest not in have and digest not in missing:
                missing[digest] = len(missing)
                out.write(read_block(new, number))
    ended = os.times()
    make = Usage(ended.user + ended.system - started.user - started.system)
    make += bench.run("zstd", "-q", "-3", "--long=27", "/work/missing", "-o", "/work/patch")
    with (
        (bench.work / "out").open("wb") as out,
        (bench.work / "missing").open("rb") as fetched,
        (bench.old / "image").open("rb") as old,
    ):
        for digest in wanted:
            here = digest in have
            out.write(read_block(old if here else fetched, (have if here else missing)[digest]))
    bench.check("out")
    index = len(wanted) * _HASH
    note = f"emulated; index {index} of it"
    return Outcome(bench.size("patch") + index, make, None, None, note)


def read_block(file: BinaryIO, number: int) -> bytes:
    file.seek(number * _BLOCK)
    return file.read(_BLOCK)


def block_digests(image: Path) -> Iterator[bytes]:
    with image.open("rb") as file:
        while data := file.read(_BLOCK):
            yield hashlib.sha256(data).digest()


# --- file trees -----------------------------------------------------------------------------


def ostree(bench: Bench) -> Outcome:
    """ostree's static delta: bsdiff and rolling checksums per file, lzma."""
    make_repo = "ostree --repo=/work/made init --mode=archive"
    commit = "ostree --repo=/work/made commit --branch=os --timestamp=2026-01-01 --tree=dir="
    bench.run("sh", "-c", f"{make_repo} && {commit}/old/tree && {commit}/new/tree")
    revision = bench.tools.run(
        ["sh", "-c", "ostree --repo=/work/made rev-parse os^ os"], work=bench.work
    ).split()
    old, new = revision
    make = bench.run(
        *("ostree", "--repo=/work/made", "static-delta", "generate", f"--from={old}"),
        *(f"--to={new}", "--inline", "--min-fallback-size=0", "--filename=/work/delta"),
    )
    bench.run("ostree", "--repo=/work/machine", "init", "--mode=bare")
    bench.run("ostree", "--repo=/work/machine", "pull-local", "/work/made", old)
    shutil.rmtree(bench.work / "made")
    apply, fits = bench.apply(
        *("ostree", "--repo=/work/machine", "static-delta", "apply-offline", "/work/delta")
    )
    bench.run("ostree", "--repo=/work/machine", "checkout", new, "/work/out")
    if difference := differs(bench.work / "out", bench.new / "tree"):
        raise Failed(f"the output differs: {difference}")
    return Outcome(bench.size("delta"), make, apply, fits, "files, not an image")


_EACH = r"""
mkdir -p /work/p
while IFS='	' read -r number old new; do %s; done < /work/list
"""


def bsdiff(bench: Bench) -> Outcome:
    """A plain reference: bsdiff per changed file, its three streams by xz; new files by xz.

    Applied from bsdiff's own bzip2. The file system's metadata (names, owners) are not in it.
    """
    changed, added = matched(bench.old / "tree", bench.new / "tree")
    lines = [f"{n}\t/old/tree/{old}\t/new/tree/{new}\n" for n, (old, new) in enumerate(changed)]
    (bench.work / "list").write_text("".join(lines))
    make = bench.run("bash", "-c", _EACH % 'bsdiff "$old" "$new" "/work/p/$number" || exit 1')
    (bench.work / "o").mkdir()
    apply, fits = bench.apply(
        "bash", "-c", _EACH % 'bspatch "$old" "/work/o/$number" "/work/p/$number" || exit 1'
    )
    total = 0
    for number, (_, new) in enumerate(changed):
        if not filecmp.cmp(bench.work / "o" / str(number), bench.new / "tree" / new, shallow=False):
            raise Failed(f"{new} is not as in the new release")
    with (bench.work / "streams").open("wb") as out:
        for new in added:
            out.write((bench.new / "tree" / new).read_bytes())
    (bench.work / "x").mkdir()
    started = os.times()
    for number in range(len(changed)):
        total += len(lzma.compress(plain_bsdiff((bench.work / "p" / str(number)).read_bytes())))
    ended = os.times()
    make += Usage(ended.user - started.user)
    make += bench.run("xz", "-k", "/work/streams")
    total += bench.size("streams.xz")
    note = f"{len(changed)} changed, {len(added)} new files; no metadata"
    return Outcome(total, make, apply, fits, note)


def plain_bsdiff(data: bytes) -> bytes:
    """Return a BSDIFF40 patch with its three bzip2 streams unpacked."""
    control, difference = (int.from_bytes(data[i : i + 8], "little") for i in (8, 16))
    ends = (32, 32 + control, 32 + control + difference, len(data))
    parts = [bz2.decompress(data[a:b]) for a, b in itertools.pairwise(ends)]
    return data[:32] + b"".join(parts)


def regular(tree: Path) -> dict[str, Path]:
    """Return the regular files below ``tree`` by relative name."""
    return {
        path.relative_to(tree).as_posix(): path
        for path in sorted(tree.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def matched(old: Path, new: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (old name, new name) of the files that changed, and the names of new ones.

    A file's old self is the one of the same name, or of the same but for the digits in it: kernel
    releases and sonames have versions in their paths.
    """
    before, after = regular(old), regular(new)
    alike: dict[str, str] = {}
    for name in before:
        alike.setdefault(re.sub(r"\d+", "0", name), name)
    contents: dict[int, list[Path]] = {}
    for path in before.values():
        contents.setdefault(path.stat().st_size, []).append(path)
    changed: list[tuple[str, str]] = []
    added: list[str] = []
    for name, path in after.items():
        source = name if name in before else alike.get(re.sub(r"\d+", "0", name))
        if source and filecmp.cmp(before[source], path, shallow=False):
            continue
        if source:
            changed.append((source, name))
        elif not any(
            filecmp.cmp(p, path, shallow=False) for p in contents.get(path.stat().st_size, [])
        ):
            added.append(name)
    return changed, added


def differs(one: Path, other: Path) -> str:
    """Return the first path at which two trees differ in kind, mode, owner or content, or ""."""
    names = [{p.relative_to(t).as_posix() for p in t.rglob("*")} for t in (one, other)]
    if odd := sorted(names[0] ^ names[1]):
        return odd[0]
    for name in sorted(names[0]):
        a, b = one / name, other / name
        x, y = a.lstat(), b.lstat()
        if (x.st_mode, x.st_uid, x.st_gid) != (y.st_mode, y.st_uid, y.st_gid):
            return name
        if stat.S_ISLNK(x.st_mode) and a.readlink() != b.readlink():
            return name
        if stat.S_ISREG(x.st_mode) and not filecmp.cmp(a, b, shallow=False):
            return name
    return ""


PEERS: Mapping[str, Callable[[Bench], Outcome]] = {
    "xdelta3": xdelta3,
    "zstd-3": zstd(3),
    "zstd-19": zstd(19),
    "ostree": ostree,
    "desync": desync,
    "casync": casync,
    "zchunk": zchunk,
    "rauc": rauc,
    "bsdiff": bsdiff,
}
