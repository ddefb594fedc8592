"""QEMU's control socket (QMP): JSON objects, one a line.

Source: QEMU's docs/interop/qmp-spec.rst. Events are read past; the lab learns what happened in a
machine from its serial log and through ssh.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or went away while it ran."""


@contextmanager
def unix_socket(path: Path, timeout: float | None = None) -> Iterator[socket.socket]:
    """Connect to the Unix socket ``path``, however long the path is.

    The kernel allows 107 bytes; going through a descriptor of the directory needs fewer.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            yield connection
    finally:
        os.close(directory)


def execute(path: Path, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
    """Run one QMP command over the socket ``path`` and return its result.

    Raises :class:`QmpError` if QEMU answers with an error, OSError if it cannot be reached.
    """
    with unix_socket(path, timeout) as connection, connection.makefile("rw") as stream:
        stream.readline()  # the greeting
        _request(stream, {"execute": "qmp_capabilities"})
        return _request(stream, {"execute": command, "arguments": arguments})


def monitor(path: Path, command: str, timeout: float = 300.0) -> str:
    """Run a human monitor command; it answers with text, and errors are text as well."""
    result: str = execute(path, "human-monitor-command", timeout, **{"command-line": command})
    return result.strip()


def _request(stream: Any, request: dict[str, Any]) -> Any:
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    for line in stream:
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise QmpError(f"{request['execute']}: {answer['error'].get('desc', answer['error'])}")
    raise QmpError(f"{request['execute']}: QEMU closed the connection")
