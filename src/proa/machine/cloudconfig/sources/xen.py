"""Xen: what the host wrote for this guest into xenstore, below ``vm-data``.

Names: ``vm-data/user-data``, ``meta-data``, ``vendor-data`` and ``network-config`` as in NoCloud
(also without the hyphen), and ``vm-data/hostname``, which XenServer and Rackspace set. It is read
through the kernel's device with the protocol of xen/include/public/io/xs_wire.h, or by the program
``xenstore-read``.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable

from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources import nocloud
from proa.machine.cloudconfig.sources.detect import Candidate
from proa.machine.cloudconfig.sources.reading import text
from proa.machine.cloudconfig.sources.source import Edge, Source
from proa.machine.record import replace

Get = Callable[[str], bytes | None]

WAIT = 5.0
"""Seconds for one answer; a host that does not answer must not stop the boot."""

_HEADER = struct.Struct("=IIII")  # type, request, transaction, length of what follows
_READ, _ERROR = 2, 16
_MAX_PAYLOAD = 4096  # XENSTORE_PAYLOAD_MAX


def xenstore(candidate: Candidate, edge: Edge) -> Source | None:
    name = "Xen, vm-data in xenstore"
    if not candidate.at:
        return understand(name, lambda path: _by_program(path, edge))
    descriptor = os.open(edge.root / candidate.at.lstrip("/"), os.O_RDWR | os.O_CLOEXEC)
    try:
        return understand(name, lambda path: read(descriptor, path))
    finally:
        os.close(descriptor)


def understand(name: str, get: Get) -> Source | None:
    """``None`` where no value that we know is set."""

    def one(*names: str) -> bytes | None:
        return next((value for n in names if (value := get(f"vm-data/{n}"))), None)

    content = nocloud.Content(
        one("meta-data", "metadata"),
        one("user-data", "userdata"),
        one("vendor-data", "vendordata"),
        one("network-config"),
    )
    problems: list[Problem] = []
    source = nocloud.source(name, content, {}, problems)
    hostname = text((one("hostname") or b"").decode("utf-8", "replace"))
    if hostname and not source.metadata.hostname:
        source = replace(source, metadata=replace(source.metadata, hostname=hostname))
    if content == nocloud.Content() and source.metadata == Metadata():
        return None
    return source


def read(descriptor: int, path: str) -> bytes | None:
    """The value at ``path``; ``None`` if there is none. ``OSError`` if the host makes no sense."""
    payload = path.encode() + b"\0"
    os.write(descriptor, _HEADER.pack(_READ, 0, 0, len(payload)) + payload)
    kind, _, _, length = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    if length > _MAX_PAYLOAD:
        raise OSError("xenstore: the answer is longer than its protocol allows")
    value = _exactly(descriptor, length)
    if kind == _ERROR:
        return None
    if kind != _READ:
        raise OSError("xenstore: an answer to another question")
    return value


def _exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not select.select((descriptor,), (), (), WAIT)[0]:
            raise TimeoutError(f"xenstore: no answer in {WAIT:.0f} s")
        chunk = os.read(descriptor, size - len(data))
        if not chunk:
            raise OSError("xenstore: the answer ends early")
        data += chunk
    return data


def _by_program(path: str, edge: Edge) -> bytes | None:
    try:
        return edge.capture(("xenstore-read", path)) or None
    except CommandFailed:  # how it says that there is no such value
        return None
