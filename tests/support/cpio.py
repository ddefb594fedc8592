"""Archives as ``cpio -H newc`` writes them, as far as sizes and places go."""

from __future__ import annotations


def newc(files: dict[str, bytes], mode: int = 0) -> bytes:
    """Return an archive of ``files``, without the padding of its last block.

    ``mode`` is what a kernel that unpacks it makes of each (type and permissions).
    """
    out = b""
    for name, data in [*files.items(), ("TRAILER!!!", b"")]:
        fields = [0] * 13
        fields[1] = mode
        fields[6], fields[11] = len(data), len(name) + 1
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        out += (header + name.encode() + b"\0").ljust(-(-(111 + len(name)) // 4) * 4, b"\0")
        out += data.ljust(-(-len(data) // 4) * 4, b"\0")
    return out
