"""Small releases for tests: a manifest and files that match it, as ``proa build`` makes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from proa.wire import manifest, version
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
