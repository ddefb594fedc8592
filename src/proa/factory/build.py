"""Building a release: from a recipe and Debian's packages to a directory of images.

The steps, each cached or remade by content: SDK → package tree → /usr → verity → initrd → UKI →
disk → manifest. Two builds from the same recipe and the same state of the archive give the same
bytes; what that state was is in the manifest's ``inputs``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import (
    archive,
    cache,
    dpkg,
    image,
    initrd,
    inventory,
    recipe,
    rootfs,
    sdk,
    snapshot,
    tree,
)
from proa.factory.kernel import KernelError
from proa.factory.snapshot import Snapshot
from proa.wire import manifest
from proa.wire.bzimage import BzImageError
from proa.wire.errors import UserError
from proa.wire.version import Version

# Bump when the way of building changes the initrd or the kernel's file for the same input.
_INITRD_REVISION = 3
_KERNEL_REVISION = 2

_ZEROS = memoryview(bytes(1 << 20))


@dataclass(frozen=True)
class BuildOptions:
    """What to build and where.

    ``root_json`` is the TUF root that machines of this release trust. ``compression`` overrides
    the recipe's; ``epoch`` (seconds since 1970) the time stamp of everything, which else is the
    date of the newest package index.
    """

    version: Version
    root_json: Path
    out: Path
    cache: Path
    recipe: Path = recipe.DEFAULT
    compression: str | None = None
    epoch: int | None = None
    refresh: bool = False


@dataclass(frozen=True)
class _Plan:
    """Everything that decides the bytes of a release."""

    options: BuildOptions
    recipe: recipe.Recipe
    state: Snapshot
    tools: sdk.Sdk
    packages: Path
    epoch: int

    @property
    def compression(self) -> str:
        return self.options.compression or self.recipe.compression


def build(options: BuildOptions, report: sdk.Report) -> Path:
    """Make the release and return its directory.

    The directory appears only when it is whole: a build that fails or is interrupted leaves none.
    Raises :class:`UserError`.
    """
    _check(options)
    return _build(_prepare(options, report), report)


def build_from(
    packages: Path, state: Snapshot, tools: sdk.Sdk, options: BuildOptions, report: sdk.Report
) -> Path:
    """Make a release as :func:`build` does, from a package tar that the caller has made.

    ``packages`` is what :func:`proa.factory.tree.ensure` returns, of whatever packages; ``state``
    is the state of the archive that they are from.
    """
    _check(options)
    epoch = options.epoch if options.epoch is not None else state.date
    plan = _Plan(options, recipe.load(options.recipe), state, tools, packages, epoch)
    return _build(plan, report)


def _check(options: BuildOptions) -> None:
    sdk.require_root()
    # What is made here has the modes that it says, not those that the caller prefers.
    os.umask(0o022)
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(
            f"{options.out} exists and is not empty",
            hint="a release is never changed; choose another directory or remove this one",
        )
    if not options.root_json.is_file():
        raise UserError(f"{options.root_json}: no such file", hint="make one: proa keys init")


def _build(plan: _Plan, report: sdk.Report) -> Path:
    options = plan.options
    with cache.scratch(options.cache) as work:
        out = work / "release"
        out.mkdir()
        _make(plan, work, out, report)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        _place(out, options.out)
    return options.out


def _prepare(options: BuildOptions, report: sdk.Report) -> _Plan:
    chosen = recipe.load(options.recipe)
    state, tools, packages = prepare(
        chosen.packages, options.cache, report, refresh=options.refresh
    )
    epoch = options.epoch if options.epoch is not None else state.date
    return _Plan(options, chosen, state, tools, packages, epoch)


def prepare(
    packages: Sequence[str], caches: Path, report: sdk.Report, *, refresh: bool = False
) -> tuple[Snapshot, sdk.Sdk, Path]:
    """Return the state of the archive to build from, the SDK, and the tar of the package tree.

    A snapshot from the cache may name packages that the mirror has dropped since; then the
    archive's newer state is taken instead.
    """
    mirrors = archive.find_mirrors()
    state = snapshot.current(mirrors, caches, refresh=refresh)
    try:
        return _installed(packages, caches, state, report)
    except snapshot.MovedOn:
        newer = snapshot.current(mirrors, caches, refresh=True)
        if newer.key == state.key:
            raise
        report("the archive moved on since it was last asked: taking its newer state")
        return _installed(packages, caches, newer, report)


def _installed(
    packages: Sequence[str], caches: Path, state: Snapshot, report: sdk.Report
) -> tuple[Snapshot, sdk.Sdk, Path]:
    tools = sdk.ensure(caches, state, report)
    return state, tools, tree.ensure(packages, tools, caches, state, report)


def _make(plan: _Plan, work: Path, out: Path, report: sdk.Report) -> None:
    options, tools, system = plan.options, plan.tools, recipe.DEFAULT.parent
    root = work / "tree"
    root.mkdir()
    report("unpacking the packages")
    _run("tar", "-C", root, "--numeric-owner", "--xattrs", "-xpf", plan.packages)
    details, owners = dpkg.packages(root), dpkg.owners(root)
    kernel = rootfs.kernel_version(root)
    report("making /usr")
    rootfs.make(
        root,
        plan.recipe,
        options.version,
        plan.epoch,
        tools,
        system / "rootfs",
        options.root_json,
    )
    vmlinuz = root / f"usr/lib/modules/{kernel}/vmlinuz"
    report("compressing the kernel")
    _kernel(plan, work, vmlinuz, report)
    shutil.copyfile(vmlinuz, out / "vmlinuz")
    report(f"compressing /usr ({plan.compression})")
    usr = image.make_usr(work, out, tools, options.version, plan.epoch, plan.compression)
    report("making the initrd")
    _initrd(plan, work, root, kernel, out / "initrd")
    line = image.command_line(plan.recipe.cmdline, usr.root_hash)
    report("making the boot image and the disk")
    image.make_uki(work, out, tools, kernel, line, plan.epoch)
    image.make_disk(work, out, tools, usr, line, system / "boot", plan.epoch)
    report("taking stock")
    stock = inventory.sizes(root, owners), inventory.files_json(root, owners)
    _take_stock(plan, out, details, *stock, kernel, usr.root_hash)


def _kernel(plan: _Plan, work: Path, vmlinuz: Path, report: sdk.Report) -> None:
    """Compress the kernel so that machines can; the result is cached by what went in."""
    words = [str(_KERNEL_REVISION), plan.tools.key, digest(vmlinuz)]
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    cached = plan.options.cache / "kernels" / key
    if not cached.exists():
        made = work / "vmlinuz"
        shutil.copyfile(vmlinuz, made)
        try:
            image.make_kernel(work, made, plan.tools)
        except (KernelError, BzImageError) as error:
            report(f"keeping Debian's vmlinuz, so updates of it are large: {error}")
            return
        cached.parent.mkdir(parents=True, exist_ok=True)
        made.rename(cached)
    # Written into the file, so that its mode stays.
    vmlinuz.write_bytes(cache.used(cached).read_bytes())


def _initrd(plan: _Plan, work: Path, root: Path, kernel: str, target: Path) -> None:
    """Make the initrd; the slow part, packing it, is cached by what is in it."""
    system = recipe.DEFAULT.parent
    content = work / "initrd"
    content.mkdir()
    # The initrd takes its few files of /etc from where the defaults lie by now.
    (root / "etc").symlink_to("usr/share/proa/etc")
    initrd.fill(content, root, initrd.load(system / "initrd.toml"), kernel)
    (root / "etc").unlink()
    rootfs.lay_over(system / "initrd", content)
    words = [str(_INITRD_REVISION), plan.tools.key, str(plan.epoch), digest_tree(content)]
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    cached = plan.options.cache / "initrds" / f"{key}.zst"
    if not cached.exists():
        image.make_initrd(work, work / "initrd.img", plan.tools, kernel, plan.epoch)
        cached.parent.mkdir(parents=True, exist_ok=True)
        (work / "initrd.img").rename(cached)
    shutil.copyfile(cache.used(cached), target)


def _take_stock(
    plan: _Plan,
    out: Path,
    details: Sequence[dpkg.Details],
    sizes: Sequence[inventory.Size],
    listing: str,
    kernel: str,
    root_hash: str,
) -> None:
    options = plan.options
    serial = image.stable_uuid(f"sbom {root_hash}")
    (out / "sbom.cdx.json").write_text(
        inventory.sbom(details, plan.recipe.name, options.version, plan.epoch, serial)
    )
    images = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    (out / "sizes.txt").write_text(inventory.size_table(sizes, images))
    (out / "sizes.json").write_text(inventory.size_json(sizes, images))
    (out / inventory.FILES).write_text(listing)
    files = {
        path.name: manifest.File(path.stat().st_size, digest(path))
        for path in sorted(out.iterdir())
    }
    release = manifest.Manifest(
        version=options.version,
        architecture=archive.ARCHITECTURE,
        source_date_epoch=plan.epoch,
        root_hash=root_hash,
        kernel=kernel,
        files=files,
        packages=tuple(d.package for d in details),
        inputs=_inputs(plan),
        channels=plan.recipe.channels,
    )
    (out / manifest.MANIFEST).write_bytes(manifest.dump(release))


def _inputs(plan: _Plan) -> dict[str, str]:
    system = recipe.DEFAULT.parent
    inputs = {f"index {suite}": value for suite, value in plan.state.indices.items()}
    inputs |= {f"tool {name}": value for name, value in plan.tools.versions().items()}
    inputs["compression"] = plan.compression
    inputs["recipe"] = hashlib.sha256(repr(plan.recipe).encode()).hexdigest()
    inputs["system files"] = digest_tree(system)
    inputs["trusted root"] = digest(plan.options.root_json)
    return inputs


def digest(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Holes are hashed without being read: a disk image is mostly holes, and reading one costs more
    than hashing it.
    """
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position < size:
            try:
                data = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size  # nothing but a hole up to the end
            for start in range(position, data, len(_ZEROS)):
                total.update(_ZEROS[: data - start])
            position = data
            end = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < size else size
            file.seek(data)
            while position < end:
                block = file.read(min(len(_ZEROS), end - position))
                if not block:
                    raise UserError(f"{path} became shorter while it was read")
                total.update(block)
                position += len(block)
    return total.hexdigest()


def digest_tree(directory: Path) -> str:
    """Return a sha256 over the names, kinds, modes and contents below ``directory``."""
    total = hashlib.sha256()
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            total.update(f"link {name} {path.readlink()}\n".encode())
        elif path.is_file():
            executable = bool(path.stat().st_mode & 0o100)
            total.update(f"file {name} {executable} {digest(path)}\n".encode())
    return total.hexdigest()


def _walk(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())


def _place(finished: Path, target: Path) -> None:
    """Move a finished release to its place, across file systems too; nothing or all of it."""
    if target.exists():
        target.rmdir()
    try:
        finished.rename(target)
    except OSError:
        temporary = target.with_name(target.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        # cp keeps the disk image sparse.
        _run("cp", "--recursive", "--sparse=always", finished, temporary)
        temporary.rename(target)


def _run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"{command[0]} failed: {result.stderr.strip()}")
