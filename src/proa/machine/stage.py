"""Writing a release to the passive slot and making it the next to boot.

The order is what makes a power cut harmless at any step:

1. the passive slot's boot entry goes, then its partition ids become those of an empty slot:
   from here on nothing can boot or mount it
2. usr and verity are written to their partitions, the boot image to the ESP under a name that no
   loader looks for, out of a payload or as they are; each is checked against its signed sha256
3. what was written is read back from the disk: the partitions by ``veritysetup verify`` against
   the signed root hash, the boot image by its sha256
4. the partitions get the ids that belong to the root hash
5. the boot entry is armed, with three tries: one rename, the last step

The running slot is not touched by any of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from proa.machine import attempts, fetch, payload, pe, slot
from proa.machine.boot import Loaders
from proa.machine.errors import Code, MachineError
from proa.machine.files import Target
from proa.machine.payload import Signed, Unusable
from proa.machine.state import MAX_REASON, Attempt, Candidate, Download, Store, Transfer
from proa.machine.system import System
from proa.wire import manifest, verity
from proa.wire import payload as form
from proa.wire.manifest import Manifest
from proa.wire.payload import Head
from proa.wire.unpack import Workshop

# After each so many bytes what came is flushed and noted, and need not come again.
_CHECKPOINT = 16 << 20
_VERIFY_TIMEOUT = 1800.0  # seconds; reading 2 GiB on the slowest disk that is of use
_MIB = 1 << 20
# Answers of a server that will not have the file, or not the part of it, at the next look either.
_NOT_THERE = (403, 404, 410, 416)

# Bytes done so far, bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Release:
    """A release that may be installed: its manifest was signed, and so were the urls' files.

    ``payloads`` are ways to it that were signed too, the one to try first first. After them come
    the files as they are.
    """

    manifest: Manifest
    urls: Mapping[str, Sequence[str]]
    payloads: Sequence[Signed] = ()

    @property
    def size(self) -> int:
        """Bytes that are written."""
        return sum(self.manifest.files[name].size for name in manifest.PAYLOAD_FILES)


@dataclass(frozen=True)
class Staging:
    """The things that staging works with. ``progress`` is called for each chunk."""

    system: System
    disk: slot.Disk
    store: Store
    patience: fetch.Patience
    progress: Progress
    report: Callable[[str], None]

    @property
    def uki(self) -> Path:
        """Where the boot image is gathered: on the ESP, where no loader looks for one."""
        return self.system.esp / "proa/incoming.efi.part"


def stage(work: Staging, release: Release, running_version: str) -> Transfer:
    """Make ``release`` the next to boot, or raise :class:`MachineError`. Says what it took."""
    try:
        _check_room(work, release)
        begin(work, release.manifest)
        fetched = _bring(work, release)
        work.report("written; verifying it as the next boot will")
        _verify(work, release)
        _arm(work, release, running_version)
        payload.forget_blobs(work.system)
    except OSError as error:
        raise write_error(error) from None
    return fetched


def begin(work: Staging, wanted: Manifest) -> None:
    """Make the passive slot unbootable, and note what is about to be written to it."""
    passive, version = work.disk.passive, str(wanted.version)
    is_there = slot.uuids_of(wanted.root_hash) == (passive.usr.uuid, passive.verity.uuid)
    if passive.usr.busy or passive.verity.busy:
        raise MachineError(
            Code.SLOT_FAILED,
            f"the slot {passive.name} is in use ({passive.usr.node} is opened by device-mapper)",
            "close what uses it (`lsblk` shows it); the updater writes only to a slot at rest",
        )
    work.uki.parent.mkdir(parents=True, exist_ok=True)
    loaders = Loaders(work.system)
    loaders.remove(passive.name)
    own = loaders.entries().get(work.disk.running)
    if own is not None and own.left is not None:
        # It was demoted for a candidate that is now given up: it is the good one again.
        loaders.commit(work.disk.running)
    if not passive.empty:
        slot.set_uuids(work.system, work.disk, passive, slot.empty_uuids(passive.name))
    kept = work.store.load().download
    if kept is None or (kept.version, kept.slot) != (version, passive.name):
        # The version may lie in the slot already: it was gone back from, or given up.
        there = (wanted.files[manifest.USR], wanted.files[manifest.USR_VERITY])
        durable = {file.sha256: file.size for file in there} if is_there else {}
        work.store.update(download=Download(version, passive.name, durable), candidate=None)
        work.system.files.remove(work.uki)


def unstage(system: System, store: Store, disk: slot.Disk) -> None:
    """Give up a version that waits for its first boot; the running one stays the only choice."""
    loaders = Loaders(system)
    loaders.remove(disk.passive.name)
    loaders.commit(disk.running)
    store.update(candidate=None, download=None)


def _check_room(work: Staging, release: Release) -> None:
    files, passive = release.manifest.files, work.disk.passive
    for name, partition in (
        (manifest.USR, passive.usr),
        (manifest.USR_VERITY, passive.verity),
    ):
        if files[name].size > partition.size:
            raise MachineError(
                Code.NO_ROOM,
                f"{name} of {release.manifest.version} has {files[name].size} bytes; "
                f"the partition {partition.node} has room for {partition.size}",
                "this machine's disk layout is too small for the release; install it anew",
            )
    esp = work.system.esp
    given_back = sum(
        path.stat().st_size
        for path in (
            work.uki,
            *esp.glob(f"EFI/Linux/proa-{passive.name}*.efi"),
            *esp.glob(f"proa/{passive.name}/*"),
        )
        if path.exists()
    )
    # The boot image, and for BIOS the kernel and the initrd out of it once more.
    needed = 2 * files[manifest.UKI].size + _MIB
    free = work.system.free(esp) + given_back
    if free < needed:
        raise MachineError(
            Code.NO_ROOM,
            f"the boot partition {esp} has {free // _MIB} MiB left; "
            f"{release.manifest.version} needs {-(-needed // _MIB)} MiB",
            "remove files that are not Proa's from it",
        )


def _bring(work: Staging, release: Release) -> Transfer:
    """Bring the release's files to their places by the first way that leads there."""
    started, fetched = work.system.monotonic(), 0
    _count_deaths(work)

    def came_by(way: str) -> Transfer:
        version, seconds = str(release.manifest.version), work.system.monotonic() - started
        instead = attempts.given_up(_attempts(work))
        return Transfer(way, version, fetched, release.size, seconds, instead)

    for signed in release.payloads:
        words = f"the delta from {signed.origin}" if signed.source else "the full payload"
        begun = _attempts(work).get(signed.head_sha256, Attempt(words))
        if why := attempts.why_not(begun):
            work.report(f"{words} could not be used in an earlier run: {why}; going another way")
            continue
        try:
            fetched += _try(work, release, signed, begun)
        except Unusable as error:
            work.report(f"{words} cannot be used: {error}; going another way")
            fetched += error.fetched
            continue
        return came_by(words)
    payload.forget_blobs(work.system)
    passive, files = work.disk.passive, release.manifest.files
    done = 0
    for name, path in (
        (manifest.USR, passive.usr.node),
        (manifest.USR_VERITY, passive.verity.node),
        (manifest.UKI, work.uki),
    ):
        fetched += _fill(work, release, name, path, done)
        done += files[name].size
    return came_by("the images")


# --- By a payload -------------------------------------------------------------------------------


def _try(work: Staging, release: Release, signed: Signed, begun: Attempt) -> int:
    """Go the way of a payload, with a note of it that stays open if this run dies."""

    def note(attempt: Attempt) -> None:
        head = signed.head_sha256
        _change(
            work,
            lambda kept: dataclasses.replace(kept, attempts={**kept.attempts, head: attempt}),
        )

    try:
        note(dataclasses.replace(begun, at_work=True))
        fetched = _from_payload(work, release, signed)
    except Unusable as error:
        # The next run must not fetch it up to there.
        note(dataclasses.replace(begun, refused=str(error)[:MAX_REASON]))
        raise
    except (MachineError, OSError, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            note(begun)
        raise
    # Any other exception is the program's own fault and counts as a death: it would come again.
    note(begun)
    return fetched


def _from_payload(work: Staging, release: Release, signed: Signed) -> int:
    """Make the release's files out of a payload; return the bytes that were fetched.

    Raises :class:`Unusable` where this payload does not lead there on this machine.
    """
    try:
        opened = payload.Payload(work.system, signed, work.patience)
        try:
            _make_all(work, release, opened)
        except Unusable as error:
            error.fetched = opened.fetched
            raise
    except fetch.FetchError as error:
        if error.status in _NOT_THERE:
            raise Unusable(str(error), Code.DOWNLOAD_FAILED) from None
        raise MachineError(
            Code.DOWNLOAD_FAILED,
            f"the download stopped: {error}",
            "what came is kept; the next check goes on from there",
        ) from None
    return opened.fetched


def _make_all(work: Staging, release: Release, opened: payload.Payload) -> None:
    disk, wanted = work.disk, release.manifest
    _must_match(opened.head, wanted)
    with contextlib.ExitStack() as stack:
        places = payload.Places(
            disk.active.usr.node, Loaders(work.system).image(disk.running), disk.passive.usr.node
        )
        shop = payload.workshop(work.system, places, stack)
        tree = _make_usr(work, release, opened, shop)
        _make_verity(work, wanted, opened.head, tree)
        _make_uki(work, release, opened, shop)


def _count_deaths(work: Staging) -> None:
    """Settle what earlier runs left open: the lock is ours, so those that began it are dead."""

    def count(kept: Download) -> Download:
        counted = attempts.counted(kept, payload.kept_bytes(work.system))
        return dataclasses.replace(kept, attempts=counted)

    for attempt in _attempts(work).values():
        if attempt.at_work:
            work.report(
                f"an earlier run of the updater died at {attempt.way} and could not say why"
            )
    _change(work, count)


def _refuse_none(work: Staging) -> None:
    """Not even the images come: it may well have been the network, and not the payloads.

    Runs that died did not die of that; their deaths stay counted.
    """

    def again(kept: Download) -> Download:
        begun = {head: dataclasses.replace(a, refused="") for head, a in kept.attempts.items()}
        return dataclasses.replace(kept, attempts=begun)

    _change(work, again)


def _must_match(head: Head, wanted: Manifest) -> None:
    """Raise unless the payload leads to the very files of the signed manifest."""
    for name, made in (
        (manifest.USR, head.usr),
        (manifest.USR_VERITY, head.verity),
        (manifest.UKI, head.uki),
    ):
        file = wanted.files[name]
        if (made.size, made.sha256.hex()) != (file.size, file.sha256):
            raise Unusable(f"it leads to another {name} than {wanted.version} has")


def _make_usr(
    work: Staging, release: Release, opened: payload.Payload, shop: Workshop
) -> verity.Tree:
    """Write the usr image; return its hash tree."""
    built = opened.head.usr
    file = release.manifest.files[manifest.USR]
    node = work.disk.passive.usr.node
    with work.system.files.target(node) as target:
        durable = min(_durable(work, file.sha256), file.size)
        start, digest, tree = _kept_part(target, opened.head, durable)
        if start:
            work.report(f"usr: going on at {start // _MIB} of {file.size // _MIB} MiB")
        windows = payload.Windows(built, start, target)
        try:
            for piece, last in payload.groups(opened, built, 0, start, shop):
                for data in windows.add(piece):
                    digest.update(data)
                    tree.update(data)
                    work.progress(windows.written, release.size)
                if last:
                    target.sync()
                    _note(work, file.sha256, windows.written)
                    opened.settle(built, windows.written)
        except (fetch.FetchError, Unusable, KeyboardInterrupt):
            # What is written was checked, whichever way is gone now.
            target.sync()
            _note(work, file.sha256, windows.written)
            raise
        if digest.hexdigest() == file.sha256:
            return tree
        _note(work, file.sha256, 0)
    raise Unusable("the usr image that it gives is not the one that was signed")


def _kept_part(target: Target, head: Head, durable: int) -> tuple[int, hashlib._Hash, verity.Tree]:
    """Return where to go on with the usr image, and the hashes of what lies before that.

    What earlier runs left is checked anew, window by window: some of it may have come as an image,
    which is not checked before it is written.
    """
    built = head.usr
    while True:
        if durable < built.size:
            durable -= durable % form.WINDOW
        start = payload.group_start(built, durable)
        digest, tree = hashlib.sha256(), verity.Tree(head.verity.salt)
        for begin, wanted in zip(range(0, durable, form.WINDOW), built.windows, strict=False):
            found, offset = hashlib.sha256(), begin
            for chunk in target.read(begin, min(begin + form.WINDOW, built.size)):
                found.update(chunk)
                if before := chunk[: max(start - offset, 0)]:
                    digest.update(before)
                    tree.update(before)
                offset += len(chunk)
            if found.digest()[: form.WINDOW_HASH] != wanted:
                durable = begin
                break
        else:
            return start, digest, tree


def _make_verity(work: Staging, wanted: Manifest, head: Head, tree: verity.Tree) -> None:
    """Write the hash tree, which follows from the image."""
    file, offset = wanted.files[manifest.USR_VERITY], 0
    if tree.finish() != wanted.root_hash:
        raise Unusable("the usr image that it gives has another root hash than was signed")
    digest = hashlib.sha256()
    with work.system.files.target(work.disk.passive.verity.node) as target:
        for piece in tree.device(UUID(bytes=head.verity.uuid)):
            target.write(offset, piece)
            digest.update(piece)
            offset += len(piece)
        target.sync()
    if digest.hexdigest() != file.sha256:
        raise Unusable("the hash tree comes out other than it was signed")
    _note(work, file.sha256, file.size)


def _make_uki(work: Staging, release: Release, opened: payload.Payload, shop: Workshop) -> None:
    """Write the boot image: whole or not at all, for it is small."""
    built, file = opened.head.uki, release.manifest.files[manifest.UKI]
    if _durable(work, file.sha256) == file.size and _is_there(work, file):
        return
    before = sum(entry.size for entry in opened.head.usr.groups)
    done = opened.head.usr.size + opened.head.verity.size
    digest, offset = hashlib.sha256(), 0
    with work.system.files.target(work.uki, create=True) as target:
        _give_back(target, 0)
        for piece, _ in payload.groups(opened, built, before, 0, shop):
            target.write(offset, piece)
            digest.update(piece)
            offset += len(piece)
            work.progress(done + offset, release.size)
        target.truncate(offset)
        target.sync()
    if digest.hexdigest() != file.sha256:
        raise Unusable("the boot image comes out other than it was signed")
    _note(work, file.sha256, file.size)


def _give_back(target: Target, size: int) -> None:
    """Cut the boot image back to ``size`` bytes before more is written to it.

    A power cut may have left clusters in its chain that its size does not count. Linux calls that
    "clusters badly computed" when the file grows, and takes no more writes to the file system, in
    this boot or any later one; cutting it, be it to the size that it has, gives them back
    (fs/fat/file.c, fat_truncate_blocks).
    """
    target.truncate(size)


def _is_there(work: Staging, file: manifest.File) -> bool:
    """Whether an earlier run has gathered the boot image."""
    try:
        with work.system.files.target(work.uki) as target:
            digest, size = _hash_present(target, target.size())
    except FileNotFoundError:
        return False
    return (size, digest.hexdigest()) == (file.size, file.sha256)


# --- As they are --------------------------------------------------------------------------------


def _fill(work: Staging, release: Release, name: str, path: Path, before: int) -> int:
    """Bring one file to its place, going on where an earlier run stopped; bytes fetched."""
    file, urls = release.manifest.files[name], list(release.urls[name])
    fetched = 0
    with work.system.files.target(path, create=name == manifest.UKI) as target:
        start = min(_durable(work, file.sha256), file.size)
        if start:
            work.report(f"{name}: going on at {start // _MIB} of {file.size // _MIB} MiB")
        digest, start = _hash_present(target, start)
        if name == manifest.UKI:
            _give_back(target, start)
        work.progress(before + start, release.size)
        while not _receive(work, release, target, digest, name, urls, start, before):
            fetched += file.size - start
            _note(work, file.sha256, 0)
            if start:
                # What was kept does not belong to it after all. Once more, from the beginning.
                work.report(f"{name}: what an earlier run left does not match; starting over")
            elif len(urls) > 1:
                work.report(f"{urls[0]} is not the file that was signed; trying the next address")
                urls = urls[1:]
            else:
                _refuse_none(work)
                raise MachineError(
                    Code.PAYLOAD_MISMATCH,
                    f"{urls[0]} is not the file that was signed: its sha256 is "
                    f"{digest.hexdigest()}",
                    "the slot was not made bootable; publish the release again from its original "
                    "files, or look for what changes them on the way",
                )
            start, digest = 0, hashlib.sha256()
        if name == manifest.UKI:
            target.truncate(file.size)
            target.sync()
    return fetched + file.size - start


def _receive(
    work: Staging,
    release: Release,
    target: Target,
    digest: hashlib._Hash,
    name: str,
    urls: Sequence[str],
    start: int,
    before: int,
) -> bool:
    """Write what comes, from ``start`` to the end; True if the whole has the signed sha256."""
    file = release.manifest.files[name]
    offset = noted = start
    pending = bytearray()

    def write_out() -> None:
        nonlocal offset
        target.write(offset, bytes(pending))
        digest.update(pending)
        offset += len(pending)
        pending.clear()
        work.progress(before + offset, release.size)

    def checkpoint() -> None:
        nonlocal noted
        target.sync()
        _note(work, file.sha256, offset)
        noted = offset

    try:
        for chunk in fetch.download_from(urls, start, file.size, work.patience, work.system.sleep):
            pending += chunk
            if len(pending) >= _MIB:
                write_out()
            if offset - noted >= _CHECKPOINT:
                checkpoint()
    except fetch.WrongSize as error:
        _refuse_none(work)
        raise MachineError(
            Code.PAYLOAD_MISMATCH,
            str(error),
            "publish the release again from its original files",
        ) from None
    except fetch.FetchError as error:
        write_out()
        checkpoint()
        _refuse_none(work)
        raise MachineError(
            Code.DOWNLOAD_FAILED,
            f"the download stopped at {(before + offset) // _MIB} of {release.size // _MIB} MiB: "
            f"{error}",
            "what came is kept; the next check goes on from there",
        ) from None
    except KeyboardInterrupt:
        write_out()
        checkpoint()
        raise
    write_out()
    checkpoint()
    return digest.hexdigest() == file.sha256


def _hash_present(target: Target, end: int) -> tuple[hashlib._Hash, int]:
    """Hash what is in place already; fewer bytes than were noted count as what they are."""
    digest, start = hashlib.sha256(), 0
    for chunk in target.read(0, end):
        digest.update(chunk)
        start += len(chunk)
    return digest, start


def _durable(work: Staging, sha256: str) -> int:
    kept = work.store.load().download
    return kept.durable.get(sha256, 0) if kept else 0


def _note(work: Staging, sha256: str, durable: int) -> None:
    _change(work, lambda kept: dataclasses.replace(kept, durable={**kept.durable, sha256: durable}))


def _change(work: Staging, change: Callable[[Download], Download]) -> None:
    """Change what is noted of this download, which :func:`begin` has begun."""
    work.store.change(
        lambda s: s if s.download is None else dataclasses.replace(s, download=change(s.download))
    )


def _attempts(work: Staging) -> Mapping[str, Attempt]:
    kept = work.store.load().download
    return kept.attempts if kept else {}


def _verify(work: Staging, release: Release) -> None:
    """Read back from the disk what was written, and check it as the next boot will."""
    passive = work.disk.passive
    for path in (passive.usr.node, passive.verity.node, work.uki):
        with work.system.files.target(path) as target:
            target.forget_cache()
    wanted = release.manifest
    # Reads every block of usr and of the hash tree; needs no device-mapper.
    done = work.system.run(
        [
            "veritysetup",
            "verify",
            str(passive.usr.node),
            str(passive.verity.node),
            wanted.root_hash,
        ],
        _VERIFY_TIMEOUT,
    )
    if done.code != 0:
        work.store.update(download=None)
        raise MachineError(
            Code.SLOT_FAILED,
            f"the slot {passive.name} does not verify after it was written: "
            f"{_last_line(done.output) or f'veritysetup ended with {done.code}'}",
            "the disk may be failing: look for I/O errors with `journalctl -k`",
        )
    with work.system.files.target(work.uki) as target:
        digest, _ = _hash_present(target, target.size())
    if digest.hexdigest() != wanted.files[manifest.UKI].sha256:
        work.store.update(download=None)
        raise MachineError(
            Code.SLOT_FAILED,
            f"{work.uki} reads back other bytes than were written",
            "the disk may be failing: look for I/O errors with `journalctl -k`",
        )
    try:
        command_line = pe.read_text(work.uki, ".cmdline").split()
    except pe.PeError as error:
        raise MachineError(Code.SLOT_FAILED, f"the boot image cannot be used: {error}") from None
    if f"usrhash={wanted.root_hash}" not in command_line:
        raise MachineError(
            Code.PAYLOAD_MISMATCH,
            f"the boot image of {wanted.version} does not belong to its usr image "
            "(its command line has another usrhash=)",
            "make the release again",
        )


def _arm(work: Staging, release: Release, running_version: str) -> None:
    wanted, disk = release.manifest, work.disk
    slot.set_uuids(work.system, disk, disk.passive, slot.uuids_of(wanted.root_hash))
    candidate = Candidate(
        version=str(wanted.version),
        slot=disk.passive.name,
        previous_version=running_version,
        time=work.system.now(),
        size=release.size,
    )
    work.store.update(candidate=candidate, download=None)
    try:
        Loaders(work.system).arm(disk.passive.name, work.uki, disk.running)
    except (pe.PeError, KeyError) as error:
        raise MachineError(Code.SLOT_FAILED, f"the boot image cannot be used: {error}") from None
    work.store.update(candidate=dataclasses.replace(candidate, armed=True))


def write_error(error: OSError) -> MachineError:
    """Say what a failed write means for the owner."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            Code.NO_ROOM,
            f"{where}no room left on the disk",
            "make room on / and /boot (`df -h`); the running system is untouched",
        )
    return MachineError(
        Code.SLOT_FAILED,
        f"{where}{error.strerror or error}",
        "the running system is untouched; look for I/O errors with `journalctl -k`",
    )


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
