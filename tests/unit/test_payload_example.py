"""The worked example of docs/payload-format.md is a payload, and does what is said there."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from uuid import UUID

from proa.wire import payload as form
from proa.wire import verity
from proa.wire.codec import Codec
from proa.wire.erofs import Extent
from proa.wire.payload import (
    Built,
    Copy,
    GroupEntry,
    Head,
    Image,
    Packing,
    Patch,
    Plain,
    Plan,
    Section,
    Source,
    Verity,
    Zero,
)
from proa.wire.unpack import Workshop, held, unpack

DOCUMENT = Path(__file__).parents[2] / "docs/payload-format.md"

OLD = bytes(4096) + b"A" * 4096 + b"the old words\n".ljust(4096, b"\0")
NEW = b"the new words!\n".ljust(4096, b"\0") + b"A" * 4096
BOOT = b"boot\n"
SALT, IDENTITY = b"salt", UUID(int=0x77)


def stored(data: bytes) -> tuple[Section, bytes]:
    return Section(Packing.NONE, len(data), len(data)), data


def blobs() -> tuple[bytes, bytes]:
    """Return the blobs of the two outputs."""
    # One copy of 13 bytes from offset 0 of the source, then two new bytes. Four bytes in, three
    # differ: "old" and "new".
    control = bytes([0, 14, 1, 1, 1, 13, 2, 0, 4, 3])
    difference = bytes(new - old & 255 for old, new in zip(b"old", b"new", strict=True))
    usr = Plan(
        sources=(Source(Image.OLD_USR, (Extent(0, 14, 8192, 14, "raw"),)),),
        lanes=((Patch(1, 15, len(control)),),),
        steps=(Plain(0, 15), Zero(4096 - 15), Copy(4096, 4096)),
        level=3,
        cluster=65536,
    )
    boot_control = bytes([0, 0, 1, 0, 0, 0, 5, 0])
    uki = Plan((), ((Patch(0, 5, len(boot_control)),),), (Plain(0, 5),), 3, 65536)
    return (
        form.dump_blob(
            stored(form.dump_plan(usr)), [[stored(control), stored(difference), stored(b"!\n")]]
        ),
        form.dump_blob(
            stored(form.dump_plan(uki)), [[stored(boot_control), stored(b""), stored(BOOT)]]
        ),
    )


def head() -> Head:
    def built(data: bytes, blob: bytes, *windows: bytes) -> Built:
        group = GroupEntry(len(data), len(blob), hashlib.sha256(blob).digest())
        return Built(len(data), hashlib.sha256(data).digest(), (group,), windows)

    tree = verity.Tree(SALT)
    tree.update(NEW)
    device = b"".join(tree.device(IDENTITY))
    usr, uki = blobs()
    return Head(
        encoder="",
        source=bytes([0x11]) * 32,
        source_size=len(OLD),
        usr=built(NEW, usr, hashlib.sha256(NEW).digest()[:16]),
        verity=Verity(len(device), hashlib.sha256(device).digest(), SALT, IDENTITY.bytes),
        uki=built(BOOT, uki),
    )


def test_the_documents_bytes_are_the_payload() -> None:
    block = DOCUMENT.read_text().split("```payload\n")[1].split("```")[0]
    lines = [
        re.match(r"([0-9a-f]{3})  ((?:[0-9a-f]{2} ?)+)  ", line) for line in block.splitlines()
    ]
    found = b""
    for line in lines:
        assert line is not None
        assert int(line[1], 16) == len(found)
        found += bytes.fromhex(line[2])
    assert found == form.dump_head(head()) + b"".join(blobs())


def test_the_documents_payload_gives_what_is_said_there() -> None:
    def read(image: Image, offset: int, size: int) -> bytes:
        return OLD[offset : offset + size]

    with Codec() as codec:
        shop = Workshop(read, codec, io.BytesIO)
        assert [b"".join(unpack(held(blob), shop)) for blob in blobs()] == [NEW, BOOT]


def test_the_document_has_every_bound() -> None:
    text = DOCUMENT.read_text()
    for name in vars(form):
        if name.startswith("MAX_"):
            assert f"`{name}`" in text, name
            value = getattr(form, name)
            assert re.search(rf"`{name}` *\| {value:,}(?!,?\d)", text), (name, f"{value:,}")
