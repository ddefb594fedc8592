"""Making payloads: the smallest way from one release to another that a small machine can go.

The order of work: compare the two /usr images (``compare``), make a patch for each changed file
(``patches``; in parallel, and kept by the hashes of both sides, so that the patches of a release
serve all older ones), lay the pieces out as groups, pack the groups, and at last take the payload
apart again as a machine will and compare every byte. A payload that does not give the release is
never written.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proa.factory import boot_payload, compare, frames, patch, patches, payload_file
from proa.factory.boot_recipe import RecipeError
from proa.factory.cache import prune_patches
from proa.factory.compare import File, Region, Usr
from proa.factory.layout import META, Cluster, Group, Kernel, Part, group_up, lay_out, pack_group
from proa.wire import bzimage, manifest, verity
from proa.wire import payload as form
from proa.wire.codec import Codec, CodecError, Encoding
from proa.wire.erofs import Extent
from proa.wire.errors import UserError
from proa.wire.manifest import Manifest
from proa.wire.payload import Image, Inner, Source

Report = Callable[[str], None]

# Bytes of a file that are put aside at most for a piece of it that comes first.
_MOST_ASIDE = 1 << 20

# Frames with a larger window cannot be unpacked in the machine's memory: 8 MiB, as a power of two.
_MAX_WINDOW_LOG = 23


@dataclass(frozen=True)
class Release:
    """A release directory with its manifest."""

    directory: Path
    manifest: Manifest

    @property
    def usr(self) -> Path:
        return self.directory / manifest.USR

    @property
    def uki(self) -> Path:
        return self.directory / manifest.UKI


def open_release(directory: Path) -> Release:
    """Read a release's manifest and see that its files are there, or raise :class:`UserError`."""
    try:
        content = manifest.load((directory / manifest.MANIFEST).read_bytes())
    except OSError as error:
        raise UserError(
            f"{directory}: no release is here: {error.strerror}",
            hint="name a directory that `proa build --out` made",
        ) from None
    except manifest.ManifestError as error:
        raise UserError(f"{directory / manifest.MANIFEST}: {error}") from None
    for name in manifest.PAYLOAD_FILES:
        file = content.files.get(name)
        path = directory / name
        if file is None or not path.is_file() or path.stat().st_size != file.size:
            raise UserError(
                f"{path} is missing or is not the file that the manifest names",
                hint="the release directory must be whole",
            )
    return Release(directory, content)


@dataclass(frozen=True)
class Tools:
    """What making needs: the machine's compressor, the store of patches, how many to make at once.

    ``encoder`` is the compressor's name, as a machine will compare it.
    """

    codec: Callable[[], Codec]
    store: Path
    workers: int
    encoder: str


def make(old: Release | None, new: Release, out: Path, tools: Tools, report: Report) -> form.Head:
    """Make the payload from ``old`` (from nothing, if None) to ``new`` in the file ``out``.

    Raises :class:`UserError`. Patches that were made stay in the store if it is interrupted.
    """
    encoding = _encoding(new)
    old_usr = Usr(old.usr, tools.codec()) if old else None
    new_usr = Usr(new.usr, tools.codec())
    report("comparing the two images" if old else "reading the image")
    parts = lay_out(old_usr, new_usr, encoding)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _pool(tools.workers) as pool,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch,
    ):
        source = _Patches(old_usr, new_usr, tools, pool, report)
        source.prepare(parts)
        blobs = Path(scratch) / "blobs"
        with blobs.open("w+b") as body:
            groups = list(_with_meta(parts, source))
            usr = _pack_all(groups, encoding, pool, body, report, old is None)
            report("describing the boot image")
            try:
                length, blob, room = boot_payload.group(
                    old.uki if old else None, old_usr, new.uki, new_usr, encoding, tools.codec()
                )
            except RecipeError as error:
                raise UserError(f"the boot image of {new.directory}: {error}") from None
            uki = [_written(body, length, blob)]
            scratch_size = max([room, *(group.scratch for group in groups)])
            head = _head(old, new, tools, encoding, usr, uki, old_usr, scratch_size)
            report("taking the payload apart again, to compare every byte")
            body.seek(0)
            _check(old, new, head, body, tools)
            finished = Path(scratch) / "payload"
            with finished.open("wb") as file:
                file.write(form.dump_head(head))
                body.seek(0)
                while piece := body.read(1 << 20):
                    file.write(piece)
            finished.replace(out)
    prune_patches(tools.store, time.time())
    return head


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to work in, which are gone at once if the body is stopped (Ctrl-C, SIGTERM)."""
    pool = ProcessPoolExecutor(workers, initializer=_leave_signals_to_the_parent)
    try:
        yield pool
    except BaseException:
        # Nothing that they are making is worth waiting for, and no public method says so.
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()


def _leave_signals_to_the_parent() -> None:
    # A terminal sends Ctrl-C to all of them, and each would tell of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _encoding(release: Release) -> Encoding:
    compression = release.manifest.inputs.get("compression", "zstd")
    return Encoding("zstd", 3) if compression == "zstd" else Encoding("lz4", 0)


class _Patches:
    """The patches between two images, made ahead in parallel and looked up as groups need them."""

    def __init__(
        self, old: Usr | None, new: Usr, tools: Tools, pool: ProcessPoolExecutor, report: Report
    ) -> None:
        self.old, self.new, self._tools, self._pool = old, new, tools, pool
        self._report = report
        self._counterparts = compare.counterparts(old, new) if old else {}
        self._made: dict[tuple[bytes, int], patches.Made] = {}
        self._kernels: dict[bytes, Kernel] = {}
        self.old_meta = _meta_source(old) if old else None
        self.old_meta_bytes = (
            b"".join(old.read(e.physical, e.stored) for e in self.old_meta.extents)
            if old and self.old_meta
            else b""
        )

    def prepare(self, parts: Sequence[Part]) -> None:
        """Make all patches of the files that ``parts`` name."""
        files = {part.file.sha256: part.file for part in parts if isinstance(part, Cluster)}
        # The kernel first: it takes longest.
        kernels = {}
        for digest, file in list(files.items()):
            if file.paths[0].endswith("/vmlinuz") and (started := self._kernel(file)) is not None:
                kernels[digest] = started
                del files[digest]
        missing: dict[bytes, File] = {}
        for digest, file in files.items():
            kept = self._kept(file)
            if kept is not None:
                self._take(file, kept)
            else:
                missing[digest] = file
        learnt = self._learn(missing.values())
        waiting = {self._start(file, learnt): file for file in missing.values()}
        for done, future in enumerate(as_completed(waiting), start=1):
            file = waiting[future]
            made = future.result()
            if file.sha256 in self._counterparts:
                patches.keep(self._tools.store, self._key(file), made)
            self._take(file, made)
            self._report(f"patches: {done} of {len(missing)} made ({file.paths[0]})")
        for digest, finish in kernels.items():
            self._report("comparing the kernels")
            self._kernels[digest] = finish()

    def _learn(self, files: Iterable[File]) -> patch.Kernel | None:
        """Return what all modules of the two kernels have in common, where there are several."""
        pairs = [
            (self.old.plain(old.extents), self.new.plain(file.extents))
            for file in files
            if file.paths[0].endswith(".ko")
            and self.old is not None
            and (old := self._counterparts.get(file.sha256)) is not None
        ]
        if len(pairs) < 2:
            return None
        self._report(f"comparing the types of {len(pairs)} kernel modules")
        return self._pool.submit(patch.learn, pairs).result()

    def _kept(self, file: File) -> list[patches.Made] | None:
        """Return a kept patch. One from nothing is the file itself, and is not worth keeping."""
        if file.sha256 not in self._counterparts:
            return None
        return patches.load(self._tools.store, self._key(file))

    def _kernel(self, file: File) -> Callable[[], Kernel] | None:
        """Begin to make a kernel through what is in it, if both kernels can be unpacked."""
        before = self._counterparts.get(file.sha256)
        if self.old is None or before is None:
            return None
        old, new = self.old.plain(before.extents), self.new.plain(file.extents)
        try:
            was, now = bzimage.locate(old), bzimage.locate(new)
            old_inner = self._unpack(old[was.offset : was.frame_end])
            new_inner = self._unpack(new[now.offset : now.frame_end])
            again = self.new.codec.zstd.encode_with([new_inner], frames.PARAMETERS, len(new_inner))
            if b"".join(again) != new[now.offset : now.frame_end]:
                return None
        except (bzimage.BzImageError, CodecError):
            return None
        source = Source(Image.OLD_USR, before.extents)
        inner = Source(
            Image.OLD_USR, before.extents, Inner(was.offset, was.frame_size, len(old_inner))
        )
        head, tail = new[: now.offset], new[now.frame_end :]
        # What is behind the frame is some 200 kB of code that hardly changes.
        behind = patches.wrap(patch.make_from_part(old, was.frame_end, tail), 1, len(tail))
        front = patches.wrap(patch.make_from_part(old[: was.offset], 0, head), 1, len(head))
        middle = self._one(old_inner, new_inner)
        return lambda: Kernel(
            head=(front, source),
            inner=(middle(), inner),
            tail=(behind, source),
            frame=now.frame_size,
            parameters=frames.PARAMETERS,
            extents=len(file.extents),
        )

    def _unpack(self, frame: bytes) -> bytes:
        return b"".join(self.new.codec.zstd.decode_frame([frame], _MAX_WINDOW_LOG))

    def _one(self, old: bytes, new: bytes) -> Callable[[], patches.Made]:
        """Begin to make one patch, or take it from the store."""
        key = patches.key(hashlib.sha256(old).digest(), hashlib.sha256(new).digest())
        kept = patches.load(self._tools.store, key)
        if kept is not None and len(kept) == 1:
            return lambda: kept[0]
        future = self._pool.submit(patches.make_whole, old, new)

        def finish() -> patches.Made:
            made = future.result()
            patches.keep(self._tools.store, key, [made])
            return made

        return finish

    def _key(self, file: File) -> str:
        old = self._counterparts.get(file.sha256)
        return patches.key(old.sha256 if old else None, file.sha256)

    def _start(self, file: File, learnt: patch.Kernel | None) -> Future[list[patches.Made]]:
        old = self._counterparts.get(file.sha256)
        before = self.old.plain(old.extents) if self.old and old else b""
        sizes = [extent.plain for extent in file.extents]
        kernel = learnt if file.paths[0].endswith(".ko") else None
        return self._pool.submit(patches.make, before, self.new.plain(file.extents), sizes, kernel)

    def _take(self, file: File, made: Sequence[patches.Made]) -> None:
        index = 0
        for part in made:
            self._made[file.sha256, index] = part
            index += part.extents

    def find(self, file: File, index: int) -> tuple[int, patches.Made | Kernel, Source | None]:
        """Return a patch that gives extent ``index`` of ``file``: from which extent on it gives
        the file, the patch itself, and what it is made from. Each is given once."""
        old = self._counterparts.get(file.sha256)
        source = Source(Image.OLD_USR, old.extents) if old else None
        if file.sha256 in self._kernels and index == 0:
            return 0, self._kernels.pop(file.sha256), source
        for (digest, first), made in self._made.items():
            if digest == file.sha256 and first <= index < first + made.extents:
                before = sum(extent.plain for extent in file.extents[first:index])
                if before <= _MOST_ASIDE:
                    del self._made[digest, first]
                    return first, made, source
        # The rest of a file whose group has ended, or a tail that lies before a large file.
        before_bytes = self.old.plain(old.extents) if self.old and old else b""
        extent = file.extents[index]
        (made,) = patches.make(before_bytes, self.new.plain([extent]), [extent.plain])
        return index, made, source


def _meta_source(old: Usr) -> Source:
    """Return what is not data in the old image, as one source."""
    extents: list[Extent] = []
    logical = 0
    for region in old.regions():
        if region.file is not None and not region.inline:
            continue
        size = region.end - region.start
        if extents and extents[-1].physical + extents[-1].stored == region.start:
            last = extents.pop()
            logical -= last.stored
            size += last.stored
            region = Region(last.physical, region.end)
        extents.append(Extent(logical, size, region.start, size, "raw"))
        logical += size
    return Source(Image.OLD_USR, tuple(extents))


def _with_meta(parts: Sequence[Part], source: _Patches) -> Iterator[Group]:
    """Yield the groups of /usr, each with the patch of its metadata."""
    for group in group_up(parts, source.new, source.find):
        if group.meta:
            (made,) = patches.make(source.old_meta_bytes, bytes(group.meta), [len(group.meta)])
            group.add(META, source.old_meta, made)
        yield group


def _pack_all(
    groups: Sequence[Group],
    encoding: Encoding,
    pool: ProcessPoolExecutor,
    body: BinaryIO,
    report: Report,
    fast: bool,
) -> list[form.GroupEntry]:
    waiting = [(group.length, pool.submit(pack_group, group, encoding, fast)) for group in groups]
    entries = []
    for number, (length, future) in enumerate(waiting, start=1):
        entries.append(_written(body, length, future.result()))
        report(f"packed: {number} of {len(waiting)} groups")
    return entries


def _written(body: BinaryIO, length: int, blob: bytes) -> form.GroupEntry:
    if len(blob) > form.MAX_BLOB:
        raise UserError(f"a group of {len(blob)} bytes is too large; this is a fault in proa")
    body.write(blob)
    return form.GroupEntry(length, len(blob), hashlib.sha256(blob).digest())


def _head(
    old: Release | None,
    new: Release,
    tools: Tools,
    encoding: Encoding,
    usr: Sequence[form.GroupEntry],
    uki: Sequence[form.GroupEntry],
    old_usr: Usr | None,
    scratch: int,
) -> form.Head:
    files = new.manifest.files
    with new.usr.open("rb") as image:
        windows = tuple(
            hashlib.sha256(window).digest()[: form.WINDOW_HASH]
            for window in iter(lambda: image.read(form.WINDOW), b"")
        )
    with (new.directory / manifest.USR_VERITY).open("rb") as file:
        salt, uuid, _ = verity.read_superblock(file.read(512))
    return form.Head(
        encoder=tools.encoder if encoding.algorithm == "zstd" else "",
        source=bytes.fromhex(old.manifest.root_hash) if old else b"",
        source_size=len(old_usr.data) if old_usr else 0,
        usr=form.Built(
            files[manifest.USR].size,
            bytes.fromhex(files[manifest.USR].sha256),
            tuple(usr),
            windows,
        ),
        verity=form.Verity(
            files[manifest.USR_VERITY].size,
            bytes.fromhex(files[manifest.USR_VERITY].sha256),
            salt,
            uuid.bytes,
        ),
        uki=form.Built(
            files[manifest.UKI].size, bytes.fromhex(files[manifest.UKI].sha256), tuple(uki)
        ),
        scratch=scratch,
    )


def _check(
    old: Release | None, new: Release, head: form.Head, body: BinaryIO, tools: Tools
) -> None:
    """Take the payload apart as a machine does, and raise unless the release comes out."""
    with contextlib.ExitStack() as stack:
        files = {Image.NEW_USR: stack.enter_context(new.usr.open("rb"))}
        if old:
            files[Image.OLD_USR] = stack.enter_context(old.usr.open("rb"))
            files[Image.OLD_UKI] = stack.enter_context(old.uki.open("rb"))
        for name, built in ((manifest.USR, head.usr), (manifest.UKI, head.uki)):
            made = payload_file.make_output(built, body, files, tools.codec())
            if made != built.sha256:
                raise UserError(
                    f"the payload does not give {name} of {new.manifest.version}",
                    hint="this is a fault in proa; nothing was written",
                )
