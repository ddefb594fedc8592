"""Small releases for tests: a manifest and files that match it, as ``proa build`` makes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from proa.wire import manifest, version
from proa.wire import payload as form
from proa.wire.manifest import File, Manifest


def make_release(
    directory: Path,
    name: str = "1.0.0",
    *,
    architecture: str = "amd64",
    content: bytes = b"",
    size: int = 4096,
    channels: tuple[str, ...] = (),
) -> Path:
    """Write a release of version ``name``; ``content`` makes its bytes differ from another's."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for file in manifest.PAYLOAD_FILES:
        data = hashlib.sha256(f"{name} {file}".encode() + content).digest() * (size // 32)
        (directory / file).write_bytes(data)
        files[file] = File(len(data), hashlib.sha256(data).hexdigest())
    contents = Manifest(
        version=version.parse(name),
        architecture=architecture,
        source_date_epoch=1_700_000_000,
        root_hash=hashlib.sha256(name.encode() + content).hexdigest(),
        kernel="6.12.0-1-amd64",
        files=files,
        channels=channels,
    )
    (directory / manifest.MANIFEST).write_bytes(manifest.dump(contents))
    return directory


def _windows(file: Path) -> tuple[bytes, ...]:
    data = file.read_bytes()
    return tuple(
        hashlib.sha256(data[at : at + form.WINDOW]).digest()[: form.WINDOW_HASH]
        for at in range(0, len(data), form.WINDOW)
    )


def make_payload(release: Path, path: Path, source: str = "", blob: bytes = b"blob") -> Path:
    """Write what has the form of a payload for ``release``; nothing can be made from its blobs."""
    contents = manifest.load((release / manifest.MANIFEST).read_bytes())
    files = contents.files
    entry = (len(blob), hashlib.sha256(blob).digest())
    built = {
        name: form.Built(
            files[name].size,
            bytes.fromhex(files[name].sha256),
            (form.GroupEntry(files[name].size, *entry),),
            _windows(release / name) if name == manifest.USR else (),
        )
        for name in (manifest.USR, manifest.UKI)
    }
    tree = files[manifest.USR_VERITY]
    head = form.Head(
        encoder="zstd 1.5.7",
        source=bytes.fromhex(source),
        source_size=4096 if source else 0,
        usr=built[manifest.USR],
        verity=form.Verity(tree.size, bytes.fromhex(tree.sha256), b"salt", bytes(16)),
        uki=built[manifest.UKI],
        scratch=1000,
    )
    path.write_bytes(form.dump_head(head) + blob + blob)
    return path
