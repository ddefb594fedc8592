"""Two small releases, the second made from the first, and the payloads that lead to it.

The images are kept in tests/unit/data, as Debian 13's mkfs.erofs 1.8.6 made them, like those of
``erofs_samples``. They are made anew in a Debian 13 with erofs-utils, as root, from the checkout,
by ``PYTHONPATH=src:tests python3 tests/support/payload_samples.py``. The payloads are made by the
factory when a test asks for them, so they are of the format that the code has now.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import random
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from proa.wire import manifest, payload, verity
from proa.wire.codec import Codec
from proa.wire.version import parse
from support import cpio as cpio_archive

DATA = Path(__file__).parents[1] / "unit/data"
CLUSTER = 8192
_TIME, _UUID = 1_700_000_000, "c0ffee00-0000-4000-8000-000000000002"
_SALT = bytes(range(32))
VERSIONS = ("1.0.0", "1.0.1")


def _noise(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def _text(name: str, size: int) -> bytes:
    words = (
        b"machine update image slot cluster block old new file root hash tree patch copy".split()
    )
    return b" ".join(words[n % len(words)] for n in _noise(name, size // 3))[:size]


def program(grown: int | None, functions: int = 60, base: int = 0x1000) -> bytes:
    """Return an ELF shared object: functions that call one another; one may be grown."""
    places, at = [], 0
    bodies = []
    for number in range(functions):
        body = random.Random(number).randbytes(random.Random(-number).randrange(40, 200))
        body += b"grown " * 8 if number == grown else b""
        bodies.append(body + b"\x90" * (-len(body) % 16))
        places.append(base + at)
        at += len(bodies[-1]) + 16
    code = b""
    for number, body in enumerate(bodies):
        here = base + len(code)
        calls = [places[(number * 7 + n) % functions] for n in range(3)]
        code += b"".join(
            b"\xe8" + struct.pack("<i", to - here - 5 * n - 5) for n, to in enumerate(calls)
        )
        code += b"\xc3" + body
    names = b"\0" + b"".join(b"function_%d\0" % n for n in range(functions))
    symbols, name = bytes(24), 1
    for number, place in enumerate(places):
        symbols += struct.pack("<IBBHQQ", name, 0x12, 0, 1, place, len(bodies[number]) + 16)
        name += len(b"function_%d\0" % number)
    frame = struct.pack("<II", 20, 0) + b"\1zR\0\1\x78\x10\1\x1b\x0c\7\x08\x90\1\0\0"
    table = b""
    low = base + len(code) + 64
    for number, place in enumerate(places):
        entry = low + len(frame)
        frame += struct.pack(
            "<IIiII", 16, len(frame) + 4, place - entry - 8, len(bodies[number]), 0
        )
        table += struct.pack("<ii", place, entry)
    header = struct.pack("<4sii", b"\1\x1b\3\x3b", low, functions) + table
    pointers = struct.pack(f"<{functions}Q", *places)
    relocations = b"".join(
        struct.pack("<QQq", 0x100000 + 8 * n, 8, place) for n, place in enumerate(places)
    )
    section_names = b"\0.text\0.eh_frame\0.eh_frame_hdr\0.data\0"
    contents = [
        # (name, type, flags, content, link, entry size); the number of each is its place + 1
        (1, 1, 6, code, 0, 0),
        (7, 1, 2, frame, 0, 0),
        (17, 1, 2, header, 0, 0),
        (31, 1, 3, pointers, 0, 0),
        (0, 4, 2, relocations, 6, 24),
        (0, 11, 2, symbols, 7, 24),
        (0, 3, 2, names, 0, 0),
        (0, 3, 0, section_names, 0, 0),
    ]
    body, headers = b"", bytes(64)
    for text, kind, flags, content, link, size in contents:
        offset = base + len(body)
        headers += struct.pack(
            "<IIQQQQIIQQ", text, kind, flags, offset, offset, len(content), link, 0, 16, size
        )
        body += content + bytes(-len(content) % 16 + 48)
    end = base + len(body)
    return b"".join(
        [
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                *(b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, end, 0, 64, 56, 1, 64, len(contents) + 1, 8),
            ),
            struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096).ljust(base - 64, b"\0"),
            body,
            headers,
        ]
    )


def files(new: bool) -> dict[str, bytes]:
    """Return the tree of a release: some files the same, some changed, moved, new or gone."""
    text = _text("text", 30_000)
    tree = {
        "bin/program": program(17 if new else None),
        "lib/same": _text("same", 20_000),
        "lib/noise": _noise("noise", 6000),
        "share/text": text[:9000] + b" a change " + text[9000:] if new else text,
        "share/tail": _text("tail", 9500) + (b"new" if new else b""),
        "share/zeros": bytes(60_000),
        f"share/doc-{VERSIONS[new]}/notes": _text("notes", 5000) + VERSIONS[new].encode(),
        "tiny": VERSIONS[new].encode(),
    }
    tree["share/only-new" if new else "share/only-old"] = _text(f"only {new}", 7000)
    tree |= {f"many/{n:02}": b"%d %d\n" % (n, new and n % 9 == 0) for n in range(40)}
    tree["lib/modules/1/vmlinuz"] = _kernel(new)
    return tree


def _frame(plain: bytes) -> bytes:
    from proa.factory import frames

    return b"".join(Codec().zstd.encode_with([plain], frames.PARAMETERS, len(plain)))


def _kernel(new: bool) -> bytes:
    """Return the file of a kernel, as far as its one zstd frame can be found in it."""
    plain = _noise("kernel", 3000) + (b"new" if new else b"") + _text("kernel", 30_000)
    frame = _frame(plain) + struct.pack("<I", len(plain))
    setup = bytearray(1024)
    setup[0x1F1], setup[0x1FE:0x200], setup[0x202:0x206] = 1, b"\x55\xaa", b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 0, len(frame))
    return bytes(setup) + frame + _noise("unpacker", 500)


def _cpio(entries: dict[str, bytes]) -> bytes:
    return cpio_archive.newc(entries)


def _uki(new: bool) -> bytes:
    """Return a boot image: a PE file with a stub, a version, the kernel, and an initrd."""
    tree = files(new)
    entries = {"init": _text(f"init {new}", 700)}
    entries |= {name: tree[name] for name in ("lib/same", "bin/program", "share/text")}
    sections = {
        b".text": _noise("stub", 1500),
        b".osrel": VERSIONS[new].encode(),
        b".linux": tree["lib/modules/1/vmlinuz"],
        b".initrd": _frame(_cpio(entries)),
    }
    headers = bytearray(512)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, 64)
    struct.pack_into("<4s2xH12xH", headers, 64, b"PE\0\0", len(sections), 0)
    body = b""
    for number, (name, data) in enumerate(sections.items()):
        size, at = len(data), 512 + len(body)
        struct.pack_into("<8sIIII", headers, 88 + 40 * number, name, size, 0, size + 100, at)
        body += data + bytes(100)
    return bytes(headers) + body


def image(new: bool) -> bytes:
    """Return the /usr image of a release."""
    return lzma.decompress((DATA / f"release-{VERSIONS[new]}.erofs.xz").read_bytes())


def write_release(directory: Path, new: bool) -> Path:
    """Make a release directory with the files that a payload is made from."""
    directory.mkdir(parents=True)
    usr, uki = image(new), _uki(new)
    tree = verity.Tree(_SALT)
    tree.update(usr)
    root = tree.finish()
    content = {
        manifest.USR: usr,
        manifest.USR_VERITY: b"".join(tree.device(UUID(_UUID))),
        manifest.UKI: uki,
    }
    for name, data in content.items():
        (directory / name).write_bytes(data)
    described = manifest.Manifest(
        version=parse(VERSIONS[new]),
        architecture="amd64",
        source_date_epoch=_TIME,
        root_hash=root,
        kernel="6.12",
        files={
            name: manifest.File(len(data), hashlib.sha256(data).hexdigest())
            for name, data in content.items()
        },
        inputs={"compression": "zstd"},
    )
    (directory / manifest.MANIFEST).write_bytes(manifest.dump(described))
    return directory


@dataclass(frozen=True)
class Payload:
    """A payload in its parts, and what it is made from. ``outputs`` are what must come out."""

    head: bytes
    blobs: tuple[bytes, ...]
    images: dict[payload.Image, bytes]
    outputs: tuple[bytes, bytes]

    @property
    def parsed(self) -> payload.Head:
        return payload.load_head(self.head)

    def read(self, image: payload.Image, offset: int, size: int) -> bytes:
        """Read the old images as a machine does; raises OSError where there is nothing."""
        data = self.images.get(image, b"")
        if offset < 0 or offset + size > len(data):
            raise OSError(f"{size} bytes at {offset} lie outside the image")
        return data[offset : offset + size]


def make(directory: Path, *, delta: bool) -> Payload:
    """Make the payload to the second release, from the first one or from nothing."""
    # The factory needs libraries that a machine, and the making of the images, do not.
    from proa.factory import payload as factory

    old = new = directory / "new"
    if not new.exists():
        write_release(new, True)
    if delta:
        old = directory / "old"
        if not old.exists():
            write_release(old, False)
    before = factory.open_release(old) if delta else None
    out = directory / "payload"
    tools = factory.Tools(Codec, directory / "store", 1, f"zstd {Codec().zstd.version}")
    head = factory.make(before, factory.open_release(new), out, tools, lambda _: None)
    data = out.read_bytes()
    at = len(data) - head.body
    blobs = []
    for group in (*head.usr.groups, *head.uki.groups):
        blobs.append(data[at : at + group.size])
        at += group.size
    images = {payload.Image.NEW_USR: image(True)}
    if delta:
        images |= {payload.Image.OLD_USR: image(False), payload.Image.OLD_UKI: _uki(False)}
    return Payload(data[: len(data) - head.body], tuple(blobs), images, (image(True), _uki(True)))


def main() -> None:
    for new in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            tree, target = Path(directory, "tree"), Path(directory, "image")
            for name, content in files(new).items():
                file = tree / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            options = ["-zzstd,level=3", f"-C{CLUSTER}", "-Eztailpacking", "--all-time"]
            command = os.environ.get("MKFS", "mkfs.erofs")
            subprocess.run(
                [command, "--quiet", *options, f"-T{_TIME}", f"-U{_UUID}", target, tree], check=True
            )
            packed = lzma.compress(target.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (DATA / f"release-{VERSIONS[new]}.erofs.xz").write_bytes(packed)
            print(VERSIONS[new], target.stat().st_size, len(packed), file=sys.stderr)


if __name__ == "__main__":
    main()
