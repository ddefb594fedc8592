"""Payloads as files: opened and checked, and taken apart as a machine does it.

A machine reads a payload through signed metadata, which gives the head's length and hash. A file
alone says nothing about itself, so what is checked here is that it is whole and does what it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proa.wire import manifest, verity
from proa.wire import payload as form
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec, CodecError
from proa.wire.erofs import ErofsError
from proa.wire.errors import UserError
from proa.wire.manifest import Manifest
from proa.wire.memory import be_frugal
from proa.wire.payload import Head, Image
from proa.wire.unpack import Stored, Workshop, unpack
from proa.wire.verity import VerityError

# Exit status; documented with the commands.
RELEASE_EXIT = 4
PAYLOAD_EXIT = 9
SOURCE_EXIT = 10
WRITE_EXIT = 11

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PayloadFile:
    """A payload's file: its head, and how long that is in bytes."""

    path: Path
    head: Head
    head_length: int
    head_sha256: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.head_length + self.head.body

    @property
    def source(self) -> str:
        """The root hash of what it starts from, in hex; "" if it is a full one."""
        return self.head.source.hex()

    @property
    def name(self) -> str:
        """Its name in a repository, within the version that it leads to."""
        return target_name(self.source)


def target_name(source: str) -> str:
    """Return the name of the payload from root hash ``source`` (hex), or of the full one."""
    return f"from-{source[:16]}.payload" if source else "full.payload"


def bad(path: Path, why: str) -> UserError:
    """Return the error for a file that is not a usable payload."""
    return UserError(
        f"{path}: {why}",
        hint="make it again with `proa payload make`",
        code=PAYLOAD_EXIT,
    )


def open_payload(path: Path) -> PayloadFile:
    """Read a payload's head and see that the file is as long as it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(form.MAX_HEAD)
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}") from None
    try:
        head, length = form.find_head(data)
    except PayloadError as error:
        raise bad(path, str(error)) from None
    if form.dump_head(head) != data[:length]:
        raise bad(path, "its head is not written in the one way that it can be")
    if (whole := length + head.body) != size:
        short = "is cut off" if size < whole else "has something behind its end"
        raise bad(path, f"{short}: it has {size} bytes, and its head says {whole}")
    return PayloadFile(path, head, length, hashlib.sha256(data[:length]).hexdigest())


def check_blobs(opened: PayloadFile) -> None:
    """Read the whole file and compare each blob with its hash in the head."""
    for _ in blobs(opened):
        pass


def blobs(opened: PayloadFile) -> Iterator[tuple[form.Output, form.GroupEntry, bytes]]:
    """Yield (output, group, blob) of each group, checked."""
    with opened.path.open("rb") as file:
        file.seek(opened.head_length)
        for output, built in outputs(opened.head):
            for number, group in enumerate(built.groups, start=1):
                data = file.read(group.size)
                if hashlib.sha256(data).digest() != group.sha256:
                    what = f"group {number} of {NAMES[output]}"
                    raise bad(opened.path, f"is damaged: {what} is not what its head says")
                yield output, group, data


NAMES = {
    form.Output.USR: manifest.USR,
    form.Output.VERITY: manifest.USR_VERITY,
    form.Output.UKI: manifest.UKI,
}


_OLD_NAMES = {
    Image.OLD_USR: "the source's usr.erofs",
    Image.NEW_USR: "the new usr.erofs",
    Image.OLD_UKI: "the source's proa.efi",
}


def outputs(head: Head) -> tuple[tuple[form.Output, form.Built], ...]:
    """Return the outputs that groups make, in the order in which their blobs lie in the file."""
    return (form.Output.USR, head.usr), (form.Output.UKI, head.uki)


# --- Applying -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What a delta starts from: an image of /usr and a boot image."""

    usr: Path
    uki: Path | None


def find_origin(opened: PayloadFile, source: Path | None, uki: Path | None) -> Origin | None:
    """Find what a payload starts from: in a release directory, or an image alone.

    Raises :class:`UserError` if it is not what the payload was made from.
    """
    if not opened.source:
        return None
    if source is None:
        raise _wrong(f"{opened.path} starts from another release", "name it with --source")
    tree: Path | None = None
    if source.is_dir():
        tree = source / manifest.USR_VERITY
        uki = uki or source / manifest.UKI
        source = source / manifest.USR
    elif (beside := source.with_name(manifest.USR_VERITY)).is_file():
        tree = beside
    for path in (source, uki):
        if path is not None and not path.exists():
            raise _wrong(f"{path} is missing", "the source is a release directory, or its images")
    size = source.stat().st_size
    if source.is_file() and size != opened.head.source_size:
        raise _wrong(
            f"{source} has {size} bytes; {opened.path} starts from an image of "
            f"{opened.head.source_size}",
            f"it starts from the release with root hash {opened.source[:16]}…",
        )
    if tree is not None and tree.is_file() and (found := _root_hash(source, tree)) != opened.source:
        raise _wrong(
            f"{source} has the root hash {found[:16]}…, and {opened.path} starts from "
            f"{opened.source[:16]}…",
            "give the release that it was made from",
        )
    return Origin(source, uki)


def _root_hash(usr: Path, tree: Path) -> str:
    try:
        with tree.open("rb") as file, usr.open("rb") as image:
            salt, _, _ = verity.read_superblock(file.read(512))
            return verity.root_hash(iter(lambda: image.read(_CHUNK), b""), salt)
    except (OSError, VerityError) as error:
        raise _wrong(f"{tree}: {error}", "the release directory must be whole") from None


def _wrong(message: str, hint: str) -> UserError:
    return UserError(message, hint=hint, code=SOURCE_EXIT)


def apply(
    opened: PayloadFile,
    origin: Origin | None,
    out: Path,
    codec: Codec,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Write ``usr.erofs``, ``usr.verity`` and ``proa.efi`` to the directory ``out``.

    Every byte is checked on the way, and nothing is left in ``out`` unless all of it is right.
    """
    be_frugal()
    out.mkdir(parents=True, exist_ok=True)
    check_blobs(opened)
    with contextlib.ExitStack() as s:
        scratch = Path(s.enter_context(tempfile.TemporaryDirectory(dir=out, prefix=".apply-")))
        usr = s.enter_context((scratch / manifest.USR).open("w+b"))
        files: dict[Image, BinaryIO] = {Image.NEW_USR: usr}
        if origin:
            files[Image.OLD_USR] = s.enter_context(origin.usr.open("rb"))
            if origin.uki:
                files[Image.OLD_UKI] = s.enter_context(origin.uki.open("rb"))
        body = s.enter_context(opened.path.open("rb"))
        body.seek(opened.head_length)
        report("making usr.erofs")
        _make(opened, opened.head.usr, body, files, codec, usr)
        report("computing the verity tree")
        _make_verity(opened, usr, scratch / manifest.USR_VERITY)
        report("making proa.efi")
        uki = s.enter_context((scratch / manifest.UKI).open("wb"))
        _make(opened, opened.head.uki, body, files, codec, uki)
        uki.flush()
        for file in manifest.PAYLOAD_FILES:
            (scratch / file).replace(out / file)


def _make(
    opened: PayloadFile,
    built: form.Built,
    body: BinaryIO,
    files: dict[Image, BinaryIO],
    codec: Codec,
    out: BinaryIO,
) -> None:
    try:
        digest = make_output(built, body, files, codec, out.write)
        out.flush()
    except (PayloadError, CodecError, ErofsError) as error:
        raise _not_made(opened, str(error)) from None
    if digest != built.sha256:
        raise _not_made(opened, "what came out is not the release's image")


def _not_made(opened: PayloadFile, why: str) -> UserError:
    # The blobs were compared with the head, so what is left to be wrong is the source.
    if opened.source:
        return _wrong(
            f"{opened.path} cannot be applied: {why}",
            f"the source was altered, or is not that of root hash {opened.source[:16]}…; or this "
            f"compressor is not {opened.head.encoder or 'the one that it needs'}",
        )
    return bad(opened.path, why)


def make_output(
    built: form.Built,
    body: BinaryIO,
    files: Mapping[Image, BinaryIO],
    codec: Codec,
    write: Callable[[bytes], object] = len,
) -> bytes:
    """Take an output out of its groups, from ``body`` on; return the sha256 of what came out."""

    def read(image: Image, offset: int, size: int) -> bytes:
        if image not in files:
            raise _wrong(
                f"the payload takes bytes from {_OLD_NAMES[image]}, which was not given",
                "give the release's directory with --source, or that file with --uki",
            )
        return os.pread(files[image].fileno(), size, offset)

    digest = hashlib.sha256()
    for group in built.groups:
        with contextlib.ExitStack() as stack:
            shop = Workshop(read, codec, lambda: stack.enter_context(tempfile.TemporaryFile()))
            for piece in unpack(_within(body, group.size), shop):
                digest.update(piece)
                write(piece)
            body.seek(group.size, os.SEEK_CUR)
    return digest.digest()


def _within(body: BinaryIO, size: int) -> Stored:
    """Return the blob of ``size`` bytes that begins where ``body`` stands."""
    start = body.tell()
    return Stored(size, lambda offset, length: os.pread(body.fileno(), length, start + offset))


def _make_verity(opened: PayloadFile, usr: BinaryIO, out: Path) -> None:
    wanted = opened.head.verity
    tree = verity.Tree(wanted.salt)
    usr.seek(0)
    while piece := usr.read(_CHUNK):
        tree.update(piece)
    digest = hashlib.sha256()
    try:
        with out.open("wb") as file:
            for piece in tree.device(uuid.UUID(bytes=wanted.uuid)):
                digest.update(piece)
                file.write(piece)
    except VerityError as error:
        raise bad(opened.path, str(error)) from None
    if digest.digest() != wanted.sha256 or out.stat().st_size != wanted.size:
        raise bad(opened.path, "its verity tree is not that of its image")


def compare(opened: PayloadFile, new: Manifest) -> None:
    """Raise unless the payload leads to that release, by the sizes and hashes of its manifest."""
    for name, size, sha256 in described(opened.head):
        wanted = new.files[name]
        if (size, sha256) != (wanted.size, wanted.sha256):
            raise bad(opened.path, f"makes another {name} than that of {new.version}")


def described(head: Head) -> tuple[tuple[str, int, str], ...]:
    """Return (file, size in bytes, sha256 in hex) of all that a payload makes."""
    return (
        (manifest.USR, head.usr.size, head.usr.sha256.hex()),
        (manifest.USR_VERITY, head.verity.size, head.verity.sha256.hex()),
        (manifest.UKI, head.uki.size, head.uki.sha256.hex()),
    )
